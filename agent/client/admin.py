"""A client of the admin API. It returns the fields of messages as plain data."""

from __future__ import annotations

from contextlib import contextmanager
from datetime import UTC
from typing import TYPE_CHECKING, Any, Self, TypeVar

import grpc
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from agent.client.endpoint import grpc_target
from agent.client.workload import why_unreachable
from agent.errors import PeerError, PeerGoneError, RequestError, UnavailableError, VouchdError
from agent.pb import admin_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path
    from types import TracebackType


SERVICE = pb.DESCRIPTOR.services_by_name["Admin"].full_name

ResponseT = TypeVar("ResponseT", bound=Message)


class AdminClient:
    """A connection to the admin socket of an agent, which it owns.

    Each call raises a VouchdError with the way out in its text.
    """

    def __init__(self, path: Path, timeout: float) -> None:
        self._path = path
        self._timeout = timeout
        # The status lists every caller of the host: no limit.
        self._channel = grpc.insecure_channel(
            grpc_target(path), options=[("grpc.max_receive_message_length", -1)]
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._channel.close()

    def status(self) -> dict[str, Any]:
        """Return the state of the agent and its callers."""
        return self._call("GetStatus", pb.GetStatusRequest(), pb.Status)

    def explain(self, pid: int) -> dict[str, Any]:
        """Return the identities of a process, with the evidence and the reasons.

        Raises:
            PeerGoneError: there is no such process.
        """
        return self._call("Explain", pb.ExplainRequest(pid=pid), pb.Explanation)

    def diff_entries(self, files: Iterable[tuple[str, bytes]]) -> dict[str, Any]:
        """Compare entry files, given as names and contents, with the entries in force."""
        messages = [pb.EntryFile(name=name, content=content) for name, content in files]
        return self._call("DiffEntries", pb.DiffEntriesRequest(files=messages), pb.EntriesDiff)

    def metrics(self) -> str:
        """Return the metrics in the Prometheus text format."""
        text: str = self._call("GetMetrics", pb.GetMetricsRequest(), pb.Metrics)["text"]
        return text

    def prepare_authority(self, kind: str) -> dict[str, Any]:
        """Create a successor now."""
        return self._call("PrepareAuthority", pb.KindRequest(kind=kind), pb.Authority)

    def activate_authority(self, kind: str) -> dict[str, Any]:
        """Sign with the successor from now on."""
        return self._call("ActivateAuthority", pb.KindRequest(kind=kind), pb.Authority)

    def taint_authority(self, authority_id: str) -> dict[str, Any]:
        """Renew all SVIDs that this authority signed."""
        return self._call(
            "TaintAuthority", pb.AuthorityRequest(authority_id=authority_id), pb.Authority
        )

    def revoke_authority(self, authority_id: str) -> dict[str, Any]:
        """Remove a tainted authority from the bundle; return the others."""
        request = pb.AuthorityRequest(authority_id=authority_id)
        return self._call("RevokeAuthority", request, pb.AuthorityList)

    def _call(
        self, method: str, request: Message, response_type: type[ResponseT]
    ) -> dict[str, Any]:
        call: Callable[..., ResponseT] = self._channel.unary_unary(
            f"/{SERVICE}/{method}", _encode, response_type.FromString
        )
        with self._failures():
            return as_data(call(request, timeout=self._timeout))

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except grpc.RpcError as error:
            raise self._explain(error.code(), error.details() or "") from error

    def _explain(self, code: grpc.StatusCode, details: str) -> VouchdError:
        match code:
            case grpc.StatusCode.INVALID_ARGUMENT:
                return RequestError(details)
            case grpc.StatusCode.NOT_FOUND:
                return PeerGoneError(details)
            case grpc.StatusCode.PERMISSION_DENIED:
                return PeerError(
                    f"{details}: only root, the agent's user and members of admin_socket_group may"
                )
            case grpc.StatusCode.UNIMPLEMENTED:
                return UnavailableError(
                    f"{self._path} is not the admin socket of an agent; check --admin-socket"
                )
            case grpc.StatusCode.DEADLINE_EXCEEDED:
                return UnavailableError(
                    f"the agent at {self._path} did not answer within {self._timeout:g} s; see its"
                    " log, or raise --timeout"
                )
            case _:
                return UnavailableError(self._why_not() or f"the agent cannot answer: {details}")

    def _why_not(self) -> str | None:
        reason = why_unreachable(self._path)
        return reason and (
            f"{reason.replace('--socket', '--admin-socket').partition(': start')[0]}; is the agent"
            " running with admin_socket_path set? (--admin-socket PATH, or -c FILE, names it)"
        )


def _encode(message: Message) -> bytes:
    return message.SerializeToString()


def as_data(message: Message) -> dict[str, Any]:
    """Return the fields of a message by name, without those that are not set."""
    data: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.is_repeated:
            data[field.name] = [_plain(each) for each in value]
        elif field.message_type is None or message.HasField(field.name):
            data[field.name] = _plain(value)
    return data


def _plain(value: Any) -> Any:
    if isinstance(value, Timestamp):
        return value.ToDatetime(tzinfo=UTC)
    return as_data(value) if isinstance(value, Message) else value
