"""The administration socket: the methods of proto/admin.proto, for those whom the kernel names.

The socket's mode keeps others out. Each call is checked against the caller's credentials besides,
and every command that changes something is logged with who gave it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn, TypeVar

import grpc
from google.protobuf import json_format
from google.protobuf.message import DecodeError, Message

from agent.config.yaml_document import Source
from agent.errors import PeerError, PeerGoneError, RequestError, StartupError, UnavailableError
from agent.pb import admin_pb2 as pb
from agent.telemetry.plain import to_plain
from agent.telemetry.throttled_log import ThrottledLog

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from structlog.typing import FilteringBoundLogger

    from agent.admin.operations import Operations
    from agent.api.guard import CallerTable, ServicerContext
    from agent.kernel.credentials import Credentials

SERVICE = pb.DESCRIPTOR.services_by_name["Admin"].full_name

RequestT = TypeVar("RequestT", bound=Message)
ResponseT = TypeVar("ResponseT", bound=Message)


@dataclass(frozen=True, slots=True)
class Administrators:
    """Who may administer: root, the agent's own user, and the members of a group."""

    own_uid: int
    gid: int | None = None

    def include(self, credentials: Credentials) -> bool:
        """Whether somebody is one of them, by what the kernel recorded at connect."""
        if credentials.uid in {0, self.own_uid}:
            return True
        return self.gid is not None and self.gid in {credentials.gid, *credentials.groups}


class AdminApi:
    """The methods, dressed for gRPC by `handlers`."""

    def __init__(
        self,
        administration: Operations,
        administrators: Administrators,
        callers: CallerTable,
        log: FilteringBoundLogger,
    ) -> None:
        self._administration = administration
        self._administrators = administrators
        self._callers = callers
        self._log = log
        self._throttled = ThrottledLog(log)

    def handlers(self) -> grpc.GenericRpcHandler:
        """All methods of proto/admin.proto."""
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "GetStatus": self._look(pb.GetStatusRequest, self._status),
                "Explain": self._look(pb.ExplainRequest, self._explain),
                "DiffEntries": self._look(pb.DiffEntriesRequest, self._diff),
                "GetMetrics": self._look(pb.GetMetricsRequest, self._metrics),
                "PrepareAuthority": self._do(pb.KindRequest, self._prepare),
                "ActivateAuthority": self._do(pb.KindRequest, self._activate),
                "TaintAuthority": self._do(pb.AuthorityRequest, self._taint),
                "RevokeAuthority": self._do(pb.AuthorityRequest, self._revoke),
            },
        )

    async def _status(self, _request: pb.GetStatusRequest) -> Message:
        return as_message(self._administration.status(), pb.Status)

    async def _explain(self, request: pb.ExplainRequest) -> Message:
        return as_message(await self._administration.explain(request.pid), pb.Explanation)

    async def _diff(self, request: pb.DiffEntriesRequest) -> Message:
        sources = [Source(name=file.name, content=file.content) for file in request.files]
        return as_message(await self._administration.diff(sources), pb.EntriesDiff)

    async def _metrics(self, _request: pb.GetMetricsRequest) -> Message:
        return pb.Metrics(text=self._administration.metrics())

    async def _prepare(self, request: pb.KindRequest) -> Message:
        return as_message(await self._administration.prepare(request.kind), pb.Authority)

    async def _activate(self, request: pb.KindRequest) -> Message:
        return as_message(await self._administration.activate(request.kind), pb.Authority)

    async def _taint(self, request: pb.AuthorityRequest) -> Message:
        return as_message(await self._administration.taint(request.id), pb.Authority)

    async def _revoke(self, request: pb.AuthorityRequest) -> Message:
        return as_message(await self._administration.revoke(request.id), pb.AuthorityList)

    # --- every call ------------------------------------------------------------------------------

    def _do(
        self, request_type: type[RequestT], answer: Callable[[RequestT], Awaitable[Message]]
    ) -> grpc.RpcMethodHandler[bytes, bytes]:
        return self._look(request_type, answer, is_command=True)

    def _look(
        self,
        request_type: type[RequestT],
        answer: Callable[[RequestT], Awaitable[Message]],
        *,
        is_command: bool = False,
    ) -> grpc.RpcMethodHandler[bytes, bytes]:
        name = answer.__name__.strip("_")

        async def handle(raw: bytes, context: ServicerContext) -> bytes:
            try:
                credentials = self._admit(context)
                request = _decode(request_type, raw)
                if is_command:
                    self._log_command(name, request, credentials)
                return (await answer(request)).SerializeToString()
            except Exception as error:  # noqa: BLE001 - every failure becomes a status
                await self._fail(context, name, error)

        return grpc.unary_unary_rpc_method_handler(handle)

    def _admit(self, context: ServicerContext) -> Credentials:
        credentials = self._callers.begin_call(context.peer()).credentials
        if not self._administrators.include(credentials):
            raise PeerError(f"user {credentials.uid} may not administer this agent")
        return credentials

    def _log_command(self, name: str, request: Message, by: Credentials) -> None:
        self._log.warning(
            "administrator's command",
            command=name,
            **{field.name: value for field, value in request.ListFields()},
            pid=by.pid,
            uid=by.uid,
        )

    async def _fail(self, context: ServicerContext, name: str, error: Exception) -> NoReturn:
        code = _status_of(error)
        if code is grpc.StatusCode.PERMISSION_DENIED:
            self._throttled.warning("admin call refused", name, method=name, reason=str(error))
        if code is grpc.StatusCode.INTERNAL:
            self._throttled.exception("internal error", name, where="admin call", method=name)
            await context.abort(code, "internal error; the agent's log says more")
        await context.abort(code, str(error))
        raise AssertionError("abort returned")


def as_message(value: object, message_type: type[ResponseT]) -> ResponseT:
    """One of our values as the message whose fields have the same names."""
    return json_format.ParseDict(to_plain(value), message_type())


def _status_of(error: Exception) -> grpc.StatusCode:
    match error:
        case RequestError():
            return grpc.StatusCode.INVALID_ARGUMENT
        case PeerGoneError():
            return grpc.StatusCode.NOT_FOUND
        case PeerError():
            return grpc.StatusCode.PERMISSION_DENIED
        case UnavailableError() | StartupError():
            return grpc.StatusCode.UNAVAILABLE
        case _:
            return grpc.StatusCode.INTERNAL


def _decode(request_type: type[RequestT], raw: bytes) -> RequestT:
    try:
        return request_type.FromString(raw)
    except DecodeError as error:
        raise RequestError(f"the request is not a {request_type.DESCRIPTOR.name}") from error
