"""The admin API: the methods of proto/admin.proto, for the users that the configuration names.

The mode of the socket keeps other users out. Each call is checked against the credentials of its
caller as well, and each command that changes something is logged with its caller.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from google.protobuf.message import Message

from agent.api.guard import refuse_unknown
from agent.api.methods import decode, encode, path_of, served
from agent.api.status import code_of, details_for_operator
from agent.config.files import MAX_FILE_BYTES
from agent.config.yaml_document import Source
from agent.errors import PeerError, UnsupportedError, VouchdError
from agent.pb import admin_pb2 as pb
from agent.telemetry.plain import to_plain
from agent.telemetry.throttled_log import ThrottledLog
from agent.transport.service import Method, StatusCode, StatusError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping

    from structlog.typing import FilteringBoundLogger

    from agent.admin.operations import Operations
    from agent.kernel.credentials import Credentials
    from agent.transport.service import Call

_DESCRIPTOR = pb.DESCRIPTOR.services_by_name["Admin"]
SERVICE = _DESCRIPTOR.full_name
_NAMES = {path_of(_DESCRIPTOR, name): name for name in _DESCRIPTOR.methods_by_name}
# These change something: each call is logged.
_COMMANDS = frozenset(
    {"PrepareAuthority", "ActivateAuthority", "TaintAuthority", "RevokeAuthority"}
)

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
        log: FilteringBoundLogger,
    ) -> None:
        self._operations = operations
        self._administrators = administrators
        self._log = log
        self._throttled = ThrottledLog(log)

    def methods(self) -> Mapping[bytes, Method]:
        """Return all methods of proto/admin.proto."""
        answers: dict[str, Callable[[Any], Awaitable[Message]]] = {
            "GetStatus": self._status,
            "Explain": self._explain,
            "DiffEntries": self._diff,
            "GetMetrics": self._metrics,
            "PrepareAuthority": self._prepare,
            "ActivateAuthority": self._activate,
            "TaintAuthority": self._taint,
            "RevokeAuthority": self._revoke,
        }
        handlers = {name: partial(self._answer, answer) for name, answer in answers.items()}
        return served(_DESCRIPTOR, handlers, MAX_FILE_BYTES)

    def unknown_method(self) -> Method:
        """Return the method that refuses a call of any other method."""
        return Method(answer=refuse_unknown, max_request_bytes=0, streams_requests=True)

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

    async def _answer(
        self,
        answer: Callable[[Any], Awaitable[Message]],
        request_type: type[Message],
        call: Call,
    ) -> None:
        credentials = self._admit(call)
        request = decode(request_type, call.request)
        with self._command_logged(self._name(call), request, credentials):
            response = encode(await answer(request))
        await call.send(response)

    def _admit(self, call: Call) -> Credentials:
        credentials = call.caller().credentials
        if not self._administrators.include(credentials):
            raise PeerError(f"user {credentials.uid} may not administer this agent")
        return credentials

    @contextmanager
    def _command_logged(self, method: str, request: Message, caller: Credentials) -> Iterator[None]:
        """Log what became of the command in the block."""
        is_command = method in _COMMANDS
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

    # --- the ends of calls ----------------------------------------------------------------------

    def ended(self, call: Call, code: StatusCode) -> None:
        """See CallObserver."""

    def failed(self, call: Call, error: Exception) -> StatusError:
        """See CallObserver."""
        method, reason = self._name(call), str(error)
        if not isinstance(error, VouchdError):
            self._throttled.exception("internal error", method, where="admin call", method=method)
        elif isinstance(error, PeerError | UnsupportedError | StatusError):
            self._throttled.warning("admin call refused", method, method=method, reason=reason)
        metadata = error.metadata if isinstance(error, StatusError) else ()
        return StatusError(code_of(error), details_for_operator(error), metadata)

    def _name(self, call: Call) -> str:
        return _NAMES.get(call.path, call.path)


def as_message(value: object, message_type: type[ResponseT]) -> ResponseT:
    """Copy a dataclass into the message whose fields have the same names."""
    from google.protobuf import json_format  # noqa: PLC0415 - 3 MiB that few agents ever need

    return json_format.ParseDict(to_plain(value), message_type())
