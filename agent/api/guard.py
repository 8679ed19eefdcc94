"""The guard of every Workload API call: security header, caller, quotas, status of failures.

Why a caller was refused goes to the audit trail and the log; the caller gets the status code and
the text of agent.api.status.
"""

from __future__ import annotations

import secrets
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

from agent.api.methods import decode, path_of, served
from agent.api.status import code_of, details_for_workload, reason_of
from agent.errors import (
    RequestError,
    StoppingError,
    UnavailableError,
    UnsupportedError,
    VouchdError,
)
from agent.signals import NO_SIGNALS, Stage, Stopwatch
from agent.telemetry.audit import RefusedCall
from agent.telemetry.plain import excerpt
from agent.telemetry.throttled_log import ThrottledLog
from agent.transport.service import Method, StatusCode, StatusError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping

    from google.protobuf.descriptor import ServiceDescriptor
    from google.protobuf.message import Message
    from structlog.typing import FilteringBoundLogger

    from agent.api.methods import Handler
    from agent.api.workload_messages import Response
    from agent.kernel.caller import Caller
    from agent.limits.quotas import Quotas
    from agent.signals import Signals
    from agent.transport.service import Call

    Unary: TypeAlias = Callable[[Caller, Any], Awaitable[Response]]
    Streaming: TypeAlias = Callable[[Caller, Any], AsyncGenerator[Response, None]]

# Workload Endpoint section 3. It stops server-side request forgery: an attacker that can choose the
# URL or the body of a workload's request cannot choose its metadata as well.
SECURITY_HEADER = "workload.spiffe.io"

# gRPC's hint when to retry (gRFC A6). Random, so that streams that end together do not return
# together.
RETRY_HINT = "grpc-retry-pushback-ms"
RETRY_MILLISECONDS = 1000

_NAMES = tuple(code.name for code in StatusCode)


class Guard:
    """Turns coroutines over (caller, request) into methods, and observes all calls of a socket.

    The guard decodes requests: a malformed one gets the status that the standard wants. It calls
    `note_refusal` for each call that ends with an error, with None if the kernel cannot name the
    caller.
    """

    def __init__(
        self,
        quotas: Quotas,
        note_refusal: Callable[[Caller | None, RefusedCall], None],
        log: FilteringBoundLogger,
        signals: Signals = NO_SIGNALS,
    ) -> None:
        self._signals = signals
        self._quotas = quotas
        self._note_refusal = note_refusal
        self._throttled = ThrottledLog(log)
        self._names: dict[str, str] = {}  # of methods, by path

    def methods(
        self,
        service: ServiceDescriptor,
        unary: Mapping[str, Unary],
        streaming: Mapping[str, Streaming],
    ) -> Mapping[bytes, Method]:
        """Return the methods of a service, given by name, under their paths."""
        handlers: dict[str, Handler] = {
            **{name: partial(self._respond, answer) for name, answer in unary.items()},
            **{name: partial(self._stream, answer) for name, answer in streaming.items()},
        }
        self._names |= {path_of(service, name): name for name in handlers}
        return served(service, handlers)

    def unknown_method(self) -> Method:
        """Return the method that refuses a call of any other method."""
        return Method(answer=refuse_unknown, max_request_bytes=0, streams_requests=True)

    async def _respond(self, answer: Unary, request_type: type[Message], call: Call) -> None:
        caller = self._admit(call)
        with self._quotas.attestation(caller.account):
            response = await answer(caller, decode(request_type, call.request))
        await call.send(response.framed)

    async def _stream(self, answer: Streaming, request_type: type[Message], call: Call) -> NoReturn:
        caller = self._admit(call)
        account, quotas = caller.account, self._quotas
        with quotas.stream(account), quotas.attestation(account) as attestation:
            responses = answer(caller, decode(request_type, call.request))
            try:
                async for response in responses:
                    attestation.release()
                    with Stopwatch(self._signals, Stage.SEND):
                        await call.send(response.framed)
            finally:
                await responses.aclose()
        # Clients hang on a stream that ends with OK.
        raise UnavailableError("the stream ended; open it again")

    def _admit(self, call: Call) -> Caller:
        """Check the security header and return the caller, in this order."""
        if call.metadata(SECURITY_HEADER) != ("true",):
            raise RequestError(
                f"security header missing: send the metadata {SECURITY_HEADER}: true"
            )
        return call.caller()

    # --- the ends of calls ----------------------------------------------------------------------

    def ended(self, call: Call, code: StatusCode) -> None:
        """See CallObserver."""
        self._signals.ended(self._name(call), _NAMES[code])

    def failed(self, call: Call, error: Exception) -> StatusError:
        """See CallObserver."""
        code = code_of(error)
        metadata = error.metadata if isinstance(error, StatusError) else ()
        if isinstance(error, StoppingError):  # every stream ends: no caller is refused
            metadata = ((RETRY_HINT, str(secrets.randbelow(RETRY_MILLISECONDS))),)
        else:
            self._signals.refused(reason_of(error))
            self._note(call, code, error)
        return StatusError(code, details_for_workload(error), metadata)

    def _note(self, call: Call, code: StatusCode, error: Exception) -> None:
        method, reason = self._name(call), excerpt(str(error))
        if not isinstance(error, VouchdError):
            self._throttled.exception("internal error", method, where="call", method=method)
            reason = f"internal error ({type(error).__name__})"
        refusal = RefusedCall(method=method, code=_NAMES[code], reason=reason)
        self._note_refusal(call.peer, refusal)

    def _name(self, call: Call) -> str:
        """Return the name of a method of an API, or else the path that the client chose."""
        return self._names.get(call.path, call.path)


async def refuse_unknown(_call: Call) -> NoReturn:
    """Answer a call of a method that does not exist."""
    raise UnsupportedError("there is no such method")
