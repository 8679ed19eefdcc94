"""The guard of every Workload API call: security header, caller, quotas, status of failures.

Why a caller was refused goes to the audit trail and the log; the caller gets the status code and
the text of agent.api.status.
"""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, NoReturn, Protocol, TypeAlias, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from agent.api.status import code_of, details_for_workload, reason_of
from agent.errors import (
    PeerError,
    PeerGoneError,
    RequestError,
    StoppingError,
    UnavailableError,
    UnsupportedError,
    VouchdError,
)
from agent.signals import NO_SIGNALS, Stage, Stopwatch
from agent.telemetry.audit import RefusedCall
from agent.telemetry.throttled_log import ThrottledLog

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping

    from structlog.typing import FilteringBoundLogger

    from agent.kernel.caller import Caller
    from agent.limits.quotas import Quotas
    from agent.signals import Signals

# Workload Endpoint section 3. It stops server-side request forgery: an attacker that can choose the
# URL or the body of a workload's request cannot choose its metadata as well.
SECURITY_HEADER = "workload.spiffe.io"

# gRPC's hint when to retry (gRFC A6). Random, so that streams that end together do not return
# together.
RETRY_HINT = "grpc-retry-pushback-ms"
RETRY_MILLISECONDS = 1000

# Callers choose the path of an unknown method; the audit trail keeps this much of it.
MAX_METHOD_CHARS = 256

RequestT = TypeVar("RequestT", bound=Message)
ServicerContext = grpc.aio.ServicerContext[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Unary(Generic[RequestT]):
    """A method with one response."""

    request_type: type[RequestT]
    answer: Callable[[Caller, RequestT], Awaitable[Message]]


@dataclass(frozen=True, slots=True)
class Streaming(Generic[RequestT]):
    """A method whose stream of responses stays open."""

    request_type: type[RequestT]
    answer: Callable[[Caller, RequestT], AsyncGenerator[Message, None]]


Method: TypeAlias = Unary[Any] | Streaming[Any]


class CallerTable(Protocol):
    """The callers of the open connections, by gRPC peer name."""

    def begin_call(self, peer: str) -> Caller:
        """Count a call on the connection, and return its caller.

        Raises:
            PeerError: the connection is not open, or the kernel could not name its process.
        """
        ...

    def caller(self, peer: str) -> Caller:
        """Return the caller of a connection.

        Raises:
            PeerError: the connection is not open, or the kernel could not name its process.
        """
        ...


class Guard:
    """Turns coroutines over (caller, request) into gRPC method handlers.

    The guard decodes requests and encodes responses: a malformed request gets the status that the
    standard wants, and equal responses are equal bytes. It calls `note_refusal` for each refused
    call, with None if the kernel cannot name the caller.
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

    def handlers(self, service: str, methods: Mapping[str, Method]) -> grpc.GenericRpcHandler:
        """Return the gRPC handlers of a service, of which the methods are given by name."""
        return grpc.method_handlers_generic_handler(
            service,
            {
                name: self._unary(name, method)
                if isinstance(method, Unary)
                else self._streaming(name, method)
                for name, method in methods.items()
            },
        )

    def unknown_methods(self) -> grpc.GenericRpcHandler:
        """Return the handler, to be added last, that refuses every other method.

        The guard counts the call; an uncounted call delays the user's next calls in the fair queue.
        """
        return _AnyMethod(self._refuse_unknown)

    def _unary(self, name: str, method: Unary[Any]) -> grpc.RpcMethodHandler[bytes, bytes]:
        async def handle(raw: bytes, context: ServicerContext) -> bytes:
            caller = None
            try:
                caller = self._admit(context)
                with self._quotas.attestation(caller.account):
                    request = decode(method.request_type, raw)
                    response = encode(await method.answer(caller, request))
                self._signals.ended(name, grpc.StatusCode.OK.name)
                return response  # noqa: TRY300 - `_fail` never returns
            except asyncio.CancelledError:
                self._signals.ended(name, grpc.StatusCode.CANCELLED.name)
                raise
            except Exception as error:  # noqa: BLE001 - every failure becomes a status
                await self._fail(context, name, error, caller)

        return grpc.unary_unary_rpc_method_handler(handle)

    def _streaming(self, name: str, method: Streaming[Any]) -> grpc.RpcMethodHandler[bytes, bytes]:
        async def handle(raw: bytes, context: ServicerContext) -> None:
            caller = None
            try:
                caller = self._admit(context)
                await self._stream(method, caller, raw, context)
            except asyncio.CancelledError:
                self._signals.ended(name, grpc.StatusCode.CANCELLED.name)
                raise
            except Exception as error:  # noqa: BLE001 - every failure becomes a status
                await self._fail(context, name, error, caller)

        return grpc.unary_stream_rpc_method_handler(handle)

    async def _stream(
        self, method: Streaming[Any], caller: Caller, raw: bytes, context: ServicerContext
    ) -> NoReturn:
        account, quotas = caller.account, self._quotas
        with quotas.stream(account), quotas.attestation(account) as attestation:
            responses = method.answer(caller, decode(method.request_type, raw))
            try:
                async for response in responses:
                    attestation.release()
                    await self._write(context, encode(response))
            finally:
                await responses.aclose()
        # Clients hang on a stream that ends with OK.
        raise UnavailableError("the stream ended; open it again")

    async def _write(self, context: ServicerContext, encoded: bytes) -> None:
        """Send a response.

        Raises:
            PeerGoneError: the client hung up; grpcio reports that as an internal error.
        """
        with Stopwatch(self._signals, Stage.SEND):
            try:
                await context.write(encoded)
            except grpc.aio.InternalError as error:
                message = "the client hung up before it took the response"
                raise PeerGoneError(message) from error

    def _admit(self, context: ServicerContext) -> Caller:
        """Count the call, check the security header and return the caller, in this order."""
        caller = self._begin_call(context)
        header = [v for k, v in context.invocation_metadata() or () if k == SECURITY_HEADER]
        if header != ["true"]:
            raise RequestError(
                f"security header missing: send the metadata {SECURITY_HEADER}: true"
            )
        if isinstance(caller, PeerError):
            raise caller
        return caller

    def _begin_call(self, context: ServicerContext) -> Caller | PeerError:
        try:
            return self._callers.begin_call(context.peer())
        except PeerError as error:
            return error

    async def _refuse_unknown(self, path: str, _requests: object, context: ServicerContext) -> None:
        caller = self._begin_call(context)
        error = UnsupportedError("there is no such method")
        await self._fail(context, path, error, None if isinstance(caller, PeerError) else caller)

    async def _fail(
        self, context: ServicerContext, method: str, error: Exception, caller: Caller | None
    ) -> NoReturn:
        code = code_of(error)
        hint: tuple[tuple[str, str], ...] = ()
        self._signals.ended(method, code.name)
        if isinstance(error, StoppingError):  # every stream ends: no caller is refused
            hint = ((RETRY_HINT, str(secrets.randbelow(RETRY_MILLISECONDS))),)
        else:
            self._signals.refused(reason_of(error))
            self._note(caller or self._caller(context), method, code, error)
        await context.abort(code, details_for_workload(error), hint)
        raise AssertionError("abort returned")

    def _note(
        self, caller: Caller | None, method: str, code: grpc.StatusCode, error: Exception
    ) -> None:
        reason = str(error)
        if not isinstance(error, VouchdError):
            self._throttled.exception("internal error", method, where="call", method=method)
            reason = f"internal error ({type(error).__name__})"
        self._note_refusal(caller, RefusedCall(method=method, code=code.name, reason=reason))

    def _caller(self, context: ServicerContext) -> Caller | None:
        try:
            return self._callers.caller(context.peer())
        except PeerError:
            return None  # the error of the call says why


class _AnyMethod(grpc.GenericRpcHandler):
    """A handler for every method: gRPC asks the handlers in the order in which they were added."""

    def __init__(self, handle: Callable[[str, object, ServicerContext], Awaitable[None]]) -> None:
        self._handle = handle

    def service(self, call: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        """See grpc.GenericRpcHandler."""
        path = call.method.encode("ascii", "backslashreplace").decode()[:MAX_METHOD_CHARS]
        return grpc.stream_stream_rpc_method_handler(partial(self._handle, path))


def encode(response: Message) -> bytes:
    """Encode deterministically: maps are sorted."""
    return response.SerializeToString(deterministic=True)


def decode(request_type: type[RequestT], raw: bytes) -> RequestT:
    """Decode a request.

    Raises:
        RequestError: the bytes are not such a message.
    """
    try:
        return request_type.FromString(raw)
    except DecodeError as error:
        raise RequestError(f"the request is not a {request_type.DESCRIPTOR.name}") from error
