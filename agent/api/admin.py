"""The admin API: the methods of proto/admin.proto, for the users that the configuration names.

The mode of the socket keeps other users out. Each call is checked against the credentials of its
caller as well, and each command that changes something is logged with its caller.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn, TypeVar

import grpc
from google.protobuf import json_format
from google.protobuf.message import Message

from agent.api.guard import decode
from agent.api.status import code_of, details_for_operator
from agent.config.yaml_document import Source
from agent.errors import PeerError, VouchdError
from agent.pb import admin_pb2 as pb
from agent.telemetry.plain import to_plain
from agent.telemetry.throttled_log import ThrottledLog

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from structlog.typing import FilteringBoundLogger

    from agent.admin.operations import Operations
    from agent.api.guard import CallerTable, ServicerContext
    from agent.kernel.credentials import Credentials

SERVICE = pb.DESCRIPTOR.services_by_name["Admin"].full_name

RequestT = TypeVar("RequestT", bound=Message)
ResponseT = TypeVar("ResponseT", bound=Message)


@dataclass(frozen=True, slots=True)
class Administrators:
    """The users who may administer: root, the agent's own user, the members of a group."""

    own_uid: int
    gid: int | None = None

    def include(self, credentials: Credentials) -> bool:
        """Return whether the credentials at connect are those of an administrator."""
        if credentials.uid in {0, self.own_uid}:
            return True
        return self.gid is not None and self.gid in {credentials.gid, *credentials.groups}


class AdminApi:
    """The methods of the admin API."""

    def __init__(
        self,
        operations: Operations,
        administrators: Administrators,
        callers: CallerTable,
        log: FilteringBoundLogger,
    ) -> None:
        self._operations = operations
        self._administrators = administrators
        self._callers = callers
        self._log = log
        self._throttled = ThrottledLog(log)

    def handlers(self) -> grpc.GenericRpcHandler:
        """Return the gRPC handlers of all methods of proto/admin.proto."""
        reads = {
            "GetStatus": self._read("GetStatus", pb.GetStatusRequest, self._status),
            "Explain": self._read("Explain", pb.ExplainRequest, self._explain),
            "DiffEntries": self._read("DiffEntries", pb.DiffEntriesRequest, self._diff),
            "GetMetrics": self._read("GetMetrics", pb.GetMetricsRequest, self._metrics),
        }
        commands = {
            "PrepareAuthority": self._command("PrepareAuthority", pb.KindRequest, self._prepare),
            "ActivateAuthority": self._command("ActivateAuthority", pb.KindRequest, self._activate),
            "TaintAuthority": self._command("TaintAuthority", pb.AuthorityRequest, self._taint),
            "RevokeAuthority": self._command("RevokeAuthority", pb.AuthorityRequest, self._revoke),
        }
        return grpc.method_handlers_generic_handler(SERVICE, reads | commands)

    async def _status(self, _request: pb.GetStatusRequest) -> Message:
        return as_message(self._operations.status(), pb.Status)

    async def _explain(self, request: pb.ExplainRequest) -> Message:
        return as_message(await self._operations.explain(request.pid), pb.Explanation)

    async def _diff(self, request: pb.DiffEntriesRequest) -> Message:
        sources = [Source(name=file.name, content=file.content) for file in request.files]
        return as_message(await self._operations.diff(sources), pb.EntriesDiff)

    async def _metrics(self, _request: pb.GetMetricsRequest) -> Message:
        return pb.Metrics(text=self._operations.metrics_text())

    async def _prepare(self, request: pb.KindRequest) -> Message:
        return as_message(await self._operations.prepare(request.kind), pb.Authority)

    async def _activate(self, request: pb.KindRequest) -> Message:
        return as_message(await self._operations.activate(request.kind), pb.Authority)

    async def _taint(self, request: pb.AuthorityRequest) -> Message:
        return as_message(await self._operations.taint(request.authority_id), pb.Authority)

    async def _revoke(self, request: pb.AuthorityRequest) -> Message:
        return as_message(await self._operations.revoke(request.authority_id), pb.AuthorityList)

    # --- every call ------------------------------------------------------------------------------

    def _command(
        self,
        name: str,
        request_type: type[RequestT],
        answer: Callable[[RequestT], Awaitable[Message]],
    ) -> grpc.RpcMethodHandler[bytes, bytes]:
        """Return the handler of a method that changes something: each call is logged."""
        return self._read(name, request_type, answer, is_command=True)

    def _read(
        self,
        name: str,
        request_type: type[RequestT],
        answer: Callable[[RequestT], Awaitable[Message]],
        *,
        is_command: bool = False,
    ) -> grpc.RpcMethodHandler[bytes, bytes]:
        async def handle(raw: bytes, context: ServicerContext) -> bytes:
            try:
                credentials = self._admit(context)
                request = decode(request_type, raw)
                with self._command_logged(name, request, credentials, is_command=is_command):
                    return (await answer(request)).SerializeToString()
            except Exception as error:  # noqa: BLE001 - every failure becomes a status
                await self._fail(context, name, error)

        return grpc.unary_unary_rpc_method_handler(handle)

    def _admit(self, context: ServicerContext) -> Credentials:
        credentials = self._callers.begin_call(context.peer()).credentials
        if not self._administrators.include(credentials):
            raise PeerError(f"user {credentials.uid} may not administer this agent")
        return credentials

    @contextmanager
    def _command_logged(
        self, method: str, request: Message, caller: Credentials, *, is_command: bool
    ) -> Iterator[None]:
        """Log what became of the command in the block."""
        arguments = {field.name: value for field, value in request.ListFields()}
        fields = {"method": method, **arguments, "pid": caller.pid, "uid": caller.uid}
        try:
            yield
        except Exception as error:
            if is_command:
                self._log.warning("admin command failed", reason=str(error), **fields)
            raise
        if is_command:
            self._log.warning("admin command", **fields)

    async def _fail(self, context: ServicerContext, method: str, error: Exception) -> NoReturn:
        if isinstance(error, PeerError):
            self._throttled.warning("admin call refused", method, method=method, reason=str(error))
        elif not isinstance(error, VouchdError):
            self._throttled.exception("internal error", method, where="admin call", method=method)
        await context.abort(code_of(error), details_for_operator(error))
        raise AssertionError("abort returned")


def as_message(value: object, message_type: type[ResponseT]) -> ResponseT:
    """Copy a dataclass into the message whose fields have the same names."""
    return json_format.ParseDict(to_plain(value), message_type())
