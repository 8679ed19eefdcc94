"""A client of the administration socket. What it returns are the messages' fields as plain data."""

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
    """Talks to one agent. Each call raises a VouchdError whose text says what to do."""

    def __init__(self, path: Path, timeout: float) -> None:
        self._path = path
        self._timeout = timeout
        # A host has as many callers as it has.
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
        """What the agent is doing, and for whom."""
        return self._call("GetStatus", pb.GetStatusRequest(), pb.Status)

    def explain(self, pid: int) -> dict[str, Any]:
        """Why a process gets, or does not get, each identity.

        Raises:
            PeerGoneError: there is no such process.
        """
        return self._call("Explain", pb.ExplainRequest(pid=pid), pb.Explanation)

    def diff_entries(self, files: Iterable[tuple[str, bytes]]) -> dict[str, Any]:
        """Compare entry files, each a name and its content, with the entries in force."""
        messages = [pb.EntryFile(name=name, content=content) for name, content in files]
        return self._call("DiffEntries", pb.DiffEntriesRequest(files=messages), pb.EntriesDiff)

    def metrics(self) -> str:
        """The metrics in the Prometheus text format."""
        text: str = self._call("GetMetrics", pb.GetMetricsRequest(), pb.Metrics)["text"]
        return text

    def prepare_authority(self, kind: str) -> dict[str, Any]:
        """Make a successor now."""
        return self._call("PrepareAuthority", pb.KindRequest(kind=kind), pb.Authority)

    def activate_authority(self, kind: str) -> dict[str, Any]:
        """Have the successor sign now."""
        return self._call("ActivateAuthority", pb.KindRequest(kind=kind), pb.Authority)

    def taint_authority(self, authority_id: str) -> dict[str, Any]:
        """Replace at once what this authority signed."""
        return self._call(
            "TaintAuthority", pb.AuthorityRequest(authority_id=authority_id), pb.Authority
        )

    def revoke_authority(self, authority_id: str) -> dict[str, Any]:
        """Take a tainted authority out of the bundle; what is left."""
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
                    f"{details}: it is for root, the agent's user and admin_socket_group"
                )
            case grpc.StatusCode.UNIMPLEMENTED:
                return UnavailableError(
                    f"{self._path} is not the administration socket of an agent; check"
                    " --admin-socket"
                )
            case grpc.StatusCode.DEADLINE_EXCEEDED:
                return UnavailableError(
                    f"the agent at {self._path} did not answer within {self._timeout:g} s; look at"
                    " its log, or give it longer with --timeout"
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
    """The fields of a message by their names; times are instants, what is not set is left out."""
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
