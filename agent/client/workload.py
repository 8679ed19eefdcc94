"""A synchronous client of the Workload API, for the command line.

It converts messages to plain values and gRPC errors to sentences with the way out. It verifies
nothing: agent.cli.verify does.
"""

from __future__ import annotations

import json
import os
import socket
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast

from google.protobuf.json_format import MessageToJson

from agent.client.endpoint import grpc_target
from agent.errors import NoIdentityError, RequestError, UnavailableError, VouchdError
from agent.pb import workloadapi_pb2 as pb

# gRPC's C core writes errors to stderr itself unless this is set before it is loaded.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import grpc
from grpc_health.v1 import health_pb2

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

    from google.protobuf.message import Message
    from google.protobuf.struct_pb2 import Struct

SERVICE = "SpiffeWorkloadAPI"
_METADATA = (("workload.spiffe.io", "true"),)
_PROBE_SECONDS = 1.0

ResponseT = TypeVar("ResponseT", bound="Message")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceivedX509Svid:
    """An X.509-SVID as received, not verified."""

    spiffe_id: str
    chain_der: bytes
    key_der: bytes = field(repr=False)
    bundle_der: bytes
    hint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class X509Update:
    """A message of FetchX509SVID: the complete state.

    `federated_bundles` are DER by trust domain ID.
    """

    svids: tuple[ReceivedX509Svid, ...]
    federated_bundles: Mapping[str, bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceivedJwtSvid:
    """A JWT-SVID as received, not verified."""

    spiffe_id: str
    token: str = field(repr=False)
    hint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JwtValidation:
    """The agent's answer about a valid token."""

    spiffe_id: str
    claims: Mapping[str, Any]


class WorkloadClient:
    """A connection to an agent, which it owns.

    All methods raise VouchdError with the way out in its text: NoIdentityError if no entry matches
    this process, UnavailableError if the agent is not reachable or cannot answer now, RequestError
    if the agent refuses the request.

    Args:
        path: the agent's socket.
        timeout: seconds per call; `watch_x509_svids` has no limit.
    """

    def __init__(self, path: Path, timeout: float) -> None:
        self._path = path
        self._timeout = timeout
        self._channel = grpc.insecure_channel(grpc_target(path))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def fetch_x509_svids(self) -> X509Update:
        """Return the X.509-SVIDs of this process."""
        request = pb.X509SVIDRequest()
        return _x509_update(self._first("FetchX509SVID", request, pb.X509SVIDResponse))

    def watch_x509_svids(self) -> Iterator[X509Update]:
        """Yield the X.509-SVIDs of this process now and after each change, until an error."""
        request = pb.X509SVIDRequest()
        stream = self._stream("FetchX509SVID", request, pb.X509SVIDResponse, timeout=None)
        with closing(stream):
            for response in stream:
                yield _x509_update(response)

    def fetch_x509_bundles(self) -> Mapping[str, bytes]:
        """Return the X.509 bundles: DER by trust domain ID."""
        request = pb.X509BundlesRequest()
        return dict(self._first("FetchX509Bundles", request, pb.X509BundlesResponse).bundles)

    def fetch_jwt_bundles(self) -> Mapping[str, bytes]:
        """Return the JWT bundles: JWK Sets by trust domain ID."""
        request = pb.JWTBundlesRequest()
        return dict(self._first("FetchJWTBundles", request, pb.JWTBundlesResponse).bundles)

    def fetch_jwt_svids(
        self, audience: Sequence[str], spiffe_id: str = ""
    ) -> tuple[ReceivedJwtSvid, ...]:
        """Return JWT-SVIDs of this process: of one identity, or of all."""
        request = pb.JWTSVIDRequest(audience=audience, spiffe_id=spiffe_id)
        response = self._call("FetchJWTSVID", request, pb.JWTSVIDResponse)
        return tuple(
            ReceivedJwtSvid(spiffe_id=svid.spiffe_id, token=svid.svid, hint=svid.hint)
            for svid in response.svids
        )

    def validate_jwt_svid(self, audience: str, token: str) -> JwtValidation:
        """Have the agent validate a token for an audience.

        Raises:
            RequestError: the token is not valid.
        """
        request = pb.ValidateJWTSVIDRequest(audience=audience, svid=token)
        response = self._call(
            "ValidateJWTSVID",
            request,
            pb.ValidateJWTSVIDResponse,
            refused="the token is not valid",
        )
        return JwtValidation(spiffe_id=response.spiffe_id, claims=_plain(response.claims))

    def health(self) -> str:
        """Return the agent's health, such as SERVING (grpc.health.v1)."""
        check = self._channel.unary_unary(
            "/grpc.health.v1.Health/Check", _encode, health_pb2.HealthCheckResponse.FromString
        )
        with self._failures():
            response = check(
                health_pb2.HealthCheckRequest(), timeout=self._timeout, metadata=_METADATA
            )
        return health_pb2.HealthCheckResponse.ServingStatus.Name(response.status)

    def _call(
        self,
        method: str,
        request: Message,
        response_type: type[ResponseT],
        refused: str = "the agent refused the request",
    ) -> ResponseT:
        call = self._channel.unary_unary(f"/{SERVICE}/{method}", _encode, response_type.FromString)
        with self._failures(refused):
            return call(request, metadata=_METADATA, timeout=self._timeout)

    def _first(self, method: str, request: Message, response_type: type[ResponseT]) -> ResponseT:
        stream = self._stream(method, request, response_type, self._timeout)
        with closing(stream):
            return next(stream)

    def _stream(
        self,
        method: str,
        request: Message,
        response_type: type[ResponseT],
        timeout: float | None,
    ) -> Generator[ResponseT, None, None]:
        """Yield the messages of a stream, which ends with an error (Workload API section 5.2)."""
        call = self._channel.unary_stream(f"/{SERVICE}/{method}", _encode, response_type.FromString)
        with self._failures():
            responses = call(request, metadata=_METADATA, timeout=timeout)
            try:
                yield from responses
            finally:
                responses.cancel()
        raise UnavailableError(f"the agent at {self._path} ended the stream; try again")

    @contextmanager
    def _failures(self, refused: str = "the agent refused the request") -> Iterator[None]:
        try:
            yield
        except grpc.RpcError as error:
            raise self._explain(error.code(), error.details() or "", refused) from error

    def _explain(self, code: grpc.StatusCode, details: str, refused: str) -> VouchdError:
        match code:
            case grpc.StatusCode.PERMISSION_DENIED:
                return NoIdentityError(
                    f"no identity issued: no registration entry matches this process (uid"
                    f" {os.geteuid()}, gid {os.getegid()}); the agent's log has its selectors:"
                    " add an entry, or ask the agent's operator"
                )
            case grpc.StatusCode.INVALID_ARGUMENT:
                return RequestError(f"{refused}: {details}")
            case grpc.StatusCode.DEADLINE_EXCEEDED:
                return UnavailableError(
                    f"the agent at {self._path} did not answer within {self._timeout:g} s; see its"
                    " log, or raise --timeout"
                )
            case grpc.StatusCode.RESOURCE_EXHAUSTED:
                return UnavailableError(
                    f"a message is too large: {details}; for a response, raise"
                    " limits.response_bytes or give the process fewer entries; for a request,"
                    " shorten it"
                )
            case grpc.StatusCode.UNIMPLEMENTED:
                return UnavailableError(
                    f"the program at {self._path} does not serve this part of the Workload API;"
                    " check that --socket names the agent's socket"
                )
            case _:
                return UnavailableError(why_unreachable(self._path) or _answered(code, details))


def why_unreachable(path: Path) -> str | None:
    """Return why connecting to a socket fails, with the way out; None if it succeeds."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_SECONDS)
        try:
            probe.connect(os.fspath(path))
        except FileNotFoundError:
            return (
                f"there is no socket at {path}: start the agent, or name its socket with --socket"
                " or SPIFFE_ENDPOINT_SOCKET"
            )
        except ConnectionRefusedError:
            return f"no process listens on {path}: start the agent, or check --socket"
        except PermissionError:
            return (
                f"no permission to connect to {path}: ask the agent's operator for access to the"
                " socket and its directories"
            )
        except OSError as error:  # a path that is too long has no errno
            return f"cannot connect to {path}: {error.strerror or error}; check --socket"
    return None


def _answered(code: grpc.StatusCode, details: str) -> str:
    return f"the agent cannot answer now ({code.name}: {details}); try again, or see its log"


def _encode(message: Message) -> bytes:
    return message.SerializeToString()


def _plain(claims: Struct) -> dict[str, Any]:
    """Convert claims. Struct has no integers: numbers such as `exp` become integers again."""

    def number(text: str) -> int | float:
        value = float(text)
        return int(value) if value.is_integer() else value

    return cast("dict[str, Any]", json.loads(MessageToJson(claims), parse_float=number))


def _x509_update(response: pb.X509SVIDResponse) -> X509Update:
    return X509Update(
        svids=tuple(
            ReceivedX509Svid(
                spiffe_id=svid.spiffe_id,
                chain_der=svid.x509_svid,
                key_der=svid.x509_svid_key,
                bundle_der=svid.bundle,
                hint=svid.hint,
            )
            for svid in response.svids
        ),
        federated_bundles=dict(response.federated_bundles),
    )
