"""What every RPC of the Workload API goes through: header, caller, and the status of failures.

The only place that knows which error means which gRPC status. Clients attach meaning to three codes
alone (Workload Endpoint section 6): INVALID_ARGUMENT must not be retried, PERMISSION_DENIED and
UNAVAILABLE may be. Why a caller was refused is for the operator's log; the caller is not told.
"""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING, NoReturn, Protocol, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from agent.errors import (
    AttestationError,
    AuthorityError,
    NoIdentityError,
    PeerError,
    PeerGoneError,
    RequestError,
    StoppingError,
    UnansweredError,
    UnavailableError,
    VouchdError,
)
from agent.limits.quotas import OverLimitError
from agent.signals import NO_SIGNALS, Refused, Stage, Stopwatch
from agent.telemetry.audit import RefusedCall
from agent.telemetry.throttled_log import ThrottledLog

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from structlog.typing import FilteringBoundLogger

    from agent.kernel.caller import Caller
    from agent.limits.quotas import Quotas
    from agent.signals import Signals

# Workload Endpoint section 3: it keeps a process from being tricked into calling on behalf of
# somebody who can choose the request, but not its metadata.
SECURITY_HEADER = "workload.spiffe.io"

# gRPC's own hint when to try again (gRFC A6). Streams that end together come back spread out.
RETRY_HINT = "grpc-retry-pushback-ms"
RETRY_MILLISECONDS = 1000

# rust-spiffe looks for exactly these words.
NO_IDENTITY = "no identity issued"

RequestT = TypeVar("RequestT", bound=Message)
ServicerContext = grpc.aio.ServicerContext[bytes, bytes]


class UnsupportedError(VouchdError):
    """The method exists in the standard and is not served here."""


class CallerTable(Protocol):
    """Who is behind a connection."""

    def begin_call(self, peer: str) -> Caller:
        """The caller behind a gRPC peer name, who has made a call.

        Raises:
            PeerError: nobody who can be vouched for.
        """
        ...

    def caller(self, peer: str) -> Caller:
        """The caller behind a gRPC peer name.

        Raises:
            PeerError: nobody who can be vouched for.
        """
        ...


class Guard:
    """Turns plain coroutines over (caller, request) into gRPC method handlers.

    Requests are decoded and responses encoded here, so that a malformed request has the status the
    standard wants, and equal responses are equal bytes. `note_refusal` is told of each call that is
    refused, and whose it was: None if there is nobody to name.
    """

    def __init__(
        self,
        callers: CallerTable,
        quotas: Quotas,
        note_refusal: Callable[[Caller | None, RefusedCall], None],
        log: FilteringBoundLogger,
        signals: Signals = NO_SIGNALS,
    ) -> None:
        self._signals = signals
        self._callers = callers
        self._quotas = quotas
        self._note_refusal = note_refusal
        self._throttled = ThrottledLog(log)

    def unary(
        self, request_type: type[RequestT], answer: Callable[[Caller, RequestT], Awaitable[Message]]
    ) -> grpc.RpcMethodHandler[bytes, bytes]:
        """A handler with one response."""
        method = method_of(request_type)

        async def handle(raw: bytes, context: ServicerContext) -> bytes:
            caller = None
            try:
                caller = self._admit(context)
                with self._quotas.attestation(caller.account):
                    response = encode(await answer(caller, _decode(request_type, raw)))
                self._signals.ended(method, grpc.StatusCode.OK.name)
                return response  # noqa: TRY300 - what comes next never returns
            except asyncio.CancelledError:
                self._signals.ended(method, grpc.StatusCode.CANCELLED.name)
                raise
            except Exception as error:  # noqa: BLE001 - every failure becomes a status
                await self._fail(context, request_type, error, caller)

        return grpc.unary_unary_rpc_method_handler(handle)

    def stream(
        self,
        request_type: type[RequestT],
        answer: Callable[[Caller, RequestT], AsyncGenerator[Message, None]],
    ) -> grpc.RpcMethodHandler[bytes, bytes]:
        """A handler whose stream stays open."""
        method = method_of(request_type)

        async def handle(raw: bytes, context: ServicerContext) -> None:
            caller = None
            try:
                caller = self._admit(context)
                account, quotas = caller.account, self._quotas
                with quotas.stream(account), quotas.attestation(account) as first:
                    responses = answer(caller, _decode(request_type, raw))
                    try:
                        async for response in responses:
                            first.release()
                            await self._write(context, encode(response))
                    finally:
                        await responses.aclose()
            except asyncio.CancelledError:
                self._signals.ended(method, grpc.StatusCode.CANCELLED.name)
                raise
            except Exception as error:  # noqa: BLE001 - every failure becomes a status
                await self._fail(context, request_type, error, caller)
            # Clients freeze on a stream that ends with OK.
            ended = UnavailableError("the stream ended; open it again")
            await self._fail(context, request_type, ended, caller)

        return grpc.unary_stream_rpc_method_handler(handle)

    def unknown_methods(self) -> grpc.GenericRpcHandler:
        """Answers, last of all, what nobody else does: a call too, which is refused."""
        return _Everything(grpc.stream_stream_rpc_method_handler(self._refuse_unknown))

    async def _refuse_unknown(self, _requests: object, context: ServicerContext) -> None:
        caller = self._begin(context.peer())
        named = None if isinstance(caller, PeerError) else caller
        await self._fail(context, None, UnsupportedError("there is no such method"), named)

    async def _write(self, context: ServicerContext, encoded: bytes) -> None:
        """Send a response.

        Raises:
            PeerGoneError: the client has hung up, which grpcio reports as an internal error.
        """
        with Stopwatch(self._signals, Stage.SEND):
            try:
                await context.write(encoded)
            except grpc.aio.InternalError as error:
                message = "the client hung up before it took the response"
                raise PeerGoneError(message) from error

    def _admit(self, context: ServicerContext) -> Caller:
        # Whatever is wrong with it, it is a call, behind which others of the same user wait.
        caller = self._begin(context.peer())
        header = [v for k, v in context.invocation_metadata() or () if k == SECURITY_HEADER]
        if header != ["true"]:
            raise RequestError(
                f"security header missing: send the metadata {SECURITY_HEADER}: true"
            )
        if isinstance(caller, PeerError):
            raise caller
        return caller

    def _begin(self, peer: str) -> Caller | PeerError:
        try:
            return self._callers.begin_call(peer)
        except PeerError as error:
            return error

    async def _fail(
        self,
        context: ServicerContext,
        request_type: type[Message] | None,
        error: Exception,
        caller: Caller | None,
    ) -> NoReturn:
        code, details = status_of(error)
        hint: tuple[tuple[str, str], ...] = ()
        method = Refused.OTHER if request_type is None else method_of(request_type)
        self._signals.ended(method, code.name)
        if isinstance(error, StoppingError):  # all streams end: nobody is refused
            hint = ((RETRY_HINT, str(secrets.randbelow(RETRY_MILLISECONDS))),)
        else:
            self._signals.refused(reason_of(error))
            self._tell(caller or self._caller(context), request_type, code, error)
        await context.abort(code, details, hint)
        raise AssertionError("abort returned")

    def _tell(
        self,
        caller: Caller | None,
        request_type: type[Message] | None,
        code: grpc.StatusCode,
        error: Exception,
    ) -> None:
        name = "unknown" if request_type is None else request_type.DESCRIPTOR.name
        reason = str(error)
        if not isinstance(error, VouchdError):
            self._throttled.exception("internal error", name, where="call", method=name)
            reason = f"internal error ({type(error).__name__})"
        self._note_refusal(caller, RefusedCall(method=name, code=code.name, reason=reason))

    def _caller(self, context: ServicerContext) -> Caller | None:
        try:
            return self._callers.caller(context.peer())
        except PeerError:
            return None  # the reason says why there is nobody to name


class _Everything(grpc.GenericRpcHandler):
    """One handler for all methods."""

    def __init__(self, handler: grpc.RpcMethodHandler[bytes, bytes]) -> None:
        self._handler = handler

    def service(self, _call: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        """See grpc.GenericRpcHandler."""
        return self._handler


def encode(response: Message) -> bytes:
    """Deterministic bytes: maps are sorted."""
    return response.SerializeToString(deterministic=True)


def status_of(error: Exception) -> tuple[grpc.StatusCode, str]:
    """The status and the text that a caller gets for a failure."""
    match error:
        case RequestError():
            return grpc.StatusCode.INVALID_ARGUMENT, str(error)
        case UnsupportedError():
            return grpc.StatusCode.UNIMPLEMENTED, str(error)
        case PeerError() | NoIdentityError():
            return grpc.StatusCode.PERMISSION_DENIED, NO_IDENTITY
        case UnavailableError():
            return grpc.StatusCode.UNAVAILABLE, str(error)
        case _:
            return grpc.StatusCode.UNAVAILABLE, "internal error; the agent's log says more"


def reason_of(error: Exception) -> str:
    """The word for a failure in the metrics, the most special that fits."""
    if isinstance(error, OverLimitError):
        return error.reason
    kinds: dict[type[BaseException], Refused] = {
        RequestError: Refused.REQUEST,
        UnsupportedError: Refused.UNSUPPORTED,
        PeerGoneError: Refused.GONE,
        PeerError: Refused.EVIDENCE,
        NoIdentityError: Refused.NO_ENTRY,
        AttestationError: Refused.ATTESTOR,
        UnansweredError: Refused.UNANSWERED,
        AuthorityError: Refused.AUTHORITY,
        UnavailableError: Refused.UNAVAILABLE,
    }
    return next((kinds[kind] for kind in type(error).__mro__ if kind in kinds), Refused.INTERNAL)


def method_of(request_type: type[Message]) -> str:
    """The method that takes such requests; each of ours has a type of its own."""
    services = request_type.DESCRIPTOR.file.services_by_name.values()
    return next(
        method.name
        for service in services
        for method in service.methods
        if method.input_type is request_type.DESCRIPTOR
    )


def _decode(request_type: type[RequestT], raw: bytes) -> RequestT:
    try:
        return request_type.FromString(raw)
    except DecodeError as error:
        raise RequestError(f"the request is not a {request_type.DESCRIPTOR.name}") from error
