"""One gRPC call: its request, its handler, its deadline and its response.

A handler makes its first step at once, in the turn of the event loop that read the request, and
each further step when the future is done for which it waits. It has no Task: most calls need none,
and a Task for each open stream costs time and memory. So a handler must not ask for the current
task, as `asyncio.timeout` and `TaskGroup` do: use a timer of the loop, or start a Task.
"""

from __future__ import annotations

import math
from asyncio import CancelledError, Future, sleep
from typing import TYPE_CHECKING, Any

from agent.transport.grpc_protocol import (
    GRPC_HTTP_STATUS,
    PREFIX_BYTES,
    RESPONSE_HEADERS,
    TRAILERS_OK,
    MessageReader,
    http_headers,
    metadata,
    trailers,
    trailers_only,
    whole_message,
)
from agent.transport.half import ErrorCode
from agent.transport.service import StatusCode, StatusError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator, Callable, Coroutine

    from agent.kernel.caller import Caller
    from agent.transport.calls import Calls
    from agent.transport.grpc_protocol import Refusal, Request
    from agent.transport.service import Method

# A request that is longer than this gets its time again for each further such part.
BYTES_IN_TIME = 64 * 1024


class ServedCall:
    """A call under way: the `Call` of its handler, and the state of its stream."""

    __slots__ = (
        "_arrival",
        "_calls",
        "_code",
        "_deadline",
        "_drained",
        "_expected",
        "_handler",
        "_has_ended",
        "_head",
        "_is_answered",
        "_is_interrupted",
        "_is_open",
        "_method",
        "_reader",
        "_timer",
        "_waited",
        "header_bytes",
        "request",
        "stream",
    )

    def __init__(self, calls: Calls, stream: int, head: Request, method: Method) -> None:
        self.stream = stream
        self.request = b""
        """See Call.request."""
        self._calls = calls
        self._head = head
        self.header_bytes = head.unusual_bytes
        """The bytes of its header block that count as held."""
        self._method = method
        self._code = StatusCode.OK
        self._is_open = True  # whether the response may still be sent
        self._is_answered = False  # whether its header block has been sent
        self._has_ended = False  # whether the request is complete
        self._deadline = math.inf
        self._expected = BYTES_IN_TIME  # bytes of the request until `_timer`, for more time
        self._reader: MessageReader | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._handler: Coroutine[Any, Any, None] | None = None
        self._waited: asyncio.Future[Any] | None = None  # that for which the handler waits
        self._is_interrupted = False  # whether its next step raises CancelledError
        self._drained: asyncio.Future[bool] | None = None
        self._arrival: asyncio.Future[bool] | None = None

    # --- for the handler ------------------------------------------------------------------------

    @property
    def path(self) -> str:
        """See Call.path."""
        return self._head.printable_path

    @property
    def peer(self) -> Caller | None:
        """See Call.peer."""
        return self._calls.link.peer

    def caller(self) -> Caller:
        """See Call.caller."""
        return self._calls.link.caller()

    def metadata(self, name: str) -> tuple[str, ...]:
        """See Call.metadata."""
        return metadata(self._head.headers, name)

    async def send(self, framed: bytes) -> None:
        """See Call.send. The output is flushed after the step of the handler."""
        if not self._is_open:
            raise StatusError(
                StatusCode.CANCELLED, "the client hung up before it took the response"
            )
        half = self._calls.half
        if not self._is_answered:
            self._note_answered()
            half.send_headers(self.stream, RESPONSE_HEADERS)
        if not half.send_data(self.stream, framed):
            await self._wait_until_drained()

    async def requests(self) -> AsyncIterator[bytes]:
        """See Call.requests. The client may send more while the handler waits for a message."""
        reader, allowed, latest = self._reader, 0, math.inf
        calls = self._calls
        while reader is not None:
            message = reader.take()
            if message is not None:
                size = PREFIX_BYTES + len(message)
                self._calls.held_bytes -= size
                self._allow(size - allowed)
                allowed, latest = 0, math.inf
                yield message
                await sleep(0)  # a client may send thousands of small messages at once
            elif self._has_ended:
                reader.check_ended()
                return
            else:
                self._allow(len(reader) - allowed)
                allowed = len(reader)
                if allowed and latest == math.inf:  # half a message costs memory
                    latest = calls.loop.time() + calls.times.half_request
                if not await self._wait_for_more(latest):
                    if not calls.link.is_behind():
                        raise self._half_request_error()
                    latest = math.inf

    # --- the request ----------------------------------------------------------------------------

    def start(self, *, ended: bool) -> bool:
        """Begin with the header block. Return whether nothing more is needed to begin."""
        head, method = self._head, self._method
        self._has_ended = ended
        if head.refusal is not None:
            # Clients of other protocols take no response in the middle of their request.
            is_of_grpc = head.refusal.http_status == GRPC_HTTP_STATUS
            if not is_of_grpc and not ended:
                return False
            if is_of_grpc:
                self._refuse(head.refusal.error())
            else:
                self._begin(self._refuse_with_text(head.refusal))
        elif head.timeout <= 0.0:
            self._expire()
        elif method.streams_requests:
            self._set_deadline()
            self._reader = MessageReader(method.max_request_bytes)
            self._begin()
        else:
            self._set_deadline()
            if not ended:
                return False
            self._reader = MessageReader(method.max_request_bytes)
            self._complete(self._reader)
        return True

    def _set_deadline(self) -> None:
        if self._head.timeout < math.inf:
            self._deadline = self._calls.loop.time() + self._head.timeout

    def take_body(self, data: bytes, *, ended: bool) -> None:
        """Take a part of the request."""
        if not self._is_open or self._has_ended:
            return
        self._has_ended = ended
        if self._head.refusal is not None:  # the window of the stream bounds what is ignored
            if ended:
                self._begin(self._refuse_with_text(self._head.refusal))
            return
        reader = self._reader
        if reader is None:
            limit = self._method.max_request_bytes
            if ended and (message := whole_message(data, limit)) is not None:
                self.request = message
                self._begin()
                return
            reader = self._reader = MessageReader(limit)
        reader.feed(data)
        self._calls.held_bytes += len(data)
        if self._method.streams_requests:
            if self._arrival is not None and not self._arrival.done():
                self._arrival.set_result(True)
        elif ended:
            self._complete(reader)
        else:
            self._take_part(reader, len(data))

    def _take_part(self, reader: MessageReader, size: int) -> None:
        """Check the part of the only message that is there, and allow the client to send more."""
        try:
            reader.check_single()
        except StatusError as error:
            self._refuse(error)
        else:
            self._calls.half.consume(self.stream, size)

    def _complete(self, reader: MessageReader) -> None:
        held = len(reader)
        try:
            self.request = reader.take_single()
        except StatusError as error:
            self._refuse(error)
        else:
            self._calls.held_bytes -= held
            self._begin()

    def _allow(self, count: int) -> None:
        """Allow the client to send so many bytes more."""
        if count and self._is_open and not self._has_ended:
            self._calls.half.consume(self.stream, count)

    async def _wait_for_more(self, latest: float) -> bool:
        """Return whether more of the request has come until then."""
        loop = self._calls.loop
        arrival: asyncio.Future[bool] = loop.create_future()
        self._arrival = arrival
        timer = loop.call_at(latest, _give_up, arrival) if latest < math.inf else None
        try:
            return await arrival
        finally:
            self._arrival = None
            if timer is not None:
                timer.cancel()

    def bound_request(self) -> None:
        """Bound the time of a request that did not come in one turn."""
        if self._is_open and not self._has_ended:
            loop = self._calls.loop
            latest = loop.time() + self._calls.times.half_request
            self._timer = loop.call_at(min(latest, self._deadline), self._end_half_request)

    def _end_half_request(self) -> None:
        calls, received = self._calls, 0 if self._reader is None else len(self._reader)
        if calls.loop.time() >= self._deadline:
            self._expire()
        elif received >= self._expected or calls.link.is_behind():
            # Entry files take longer, the more so as the fair queue has them wait.
            self._expected = received + BYTES_IN_TIME
            self.bound_request()
        else:
            self._refuse(self._half_request_error())
        calls.link.flush()

    def _half_request_error(self) -> StatusError:
        seconds = self._calls.times.half_request
        details = f"the request was not complete within {seconds:g} s; try again"
        return StatusError(StatusCode.UNAVAILABLE, details)

    def _refuse(self, error: StatusError) -> None:
        """End a call without a handler: the client broke a rule of gRPC."""
        self._end_response(self._calls.services.observer.failed(self, error))
        self._forget()

    async def _refuse_with_text(self, refusal: Refusal) -> None:
        """Answer a request of another protocol, in place of a handler: flow control may wait.

        Clients of other protocols show the text. Clients of gRPC take the trailers.
        """
        half = self._calls.half
        self._note_answered()
        half.send_headers(self.stream, http_headers(refusal.http_status))
        if not half.send_data(self.stream, f"{refusal.details}\n".encode()):
            await self._wait_until_drained()
        raise refusal.error()

    # --- the handler ----------------------------------------------------------------------------

    def _begin(self, handler: Coroutine[Any, Any, None] | None = None) -> None:
        """Make the first step of the handler, which is the method's by default."""
        self._cancel_timer()
        self._handler = handler = handler or self._method.answer(self)
        self._step(handler.send, None)
        if self._waited is not None and self._deadline < math.inf:
            self._timer = self._calls.loop.call_at(self._deadline, self._end_in_time)

    def _step(self, step: Callable[[Any], Any], value: object) -> None:
        """Let the handler run until it waits for a future, or ends."""
        self._waited = None
        try:
            waited = step(value)
        except BaseException as error:  # noqa: BLE001 - `_end` raises what is none of ours
            self._end(error)
            return
        if waited is None:  # asyncio.sleep(0)
            waited = self._calls.loop.create_future()
            waited.set_result(None)
        waited._asyncio_future_blocking = False  # noqa: SLF001 - as a Task answers to `await`
        waited.add_done_callback(self._go_on)
        self._waited = waited
        if self._is_interrupted:  # by itself: it ended the connection
            self._interrupt(waited)

    def _go_on(self, waited: asyncio.Future[Any]) -> None:
        """Make the next step: the future is done for which the handler waited."""
        handler = self._handler
        if handler is None or waited is not self._waited:
            return  # it was interrupted meanwhile
        if self._is_interrupted:
            self._is_interrupted = False
            self._step(handler.throw, CancelledError())
        else:
            self._step(handler.send, None)
        if not self._calls.is_closed:
            self._calls.link.flush()

    def _end_handler(self) -> None:
        """Raise CancelledError in the handler, as the cancellation of a Task does."""
        if self._handler is None:
            self._forget()
        elif self._waited is None:  # it runs just now
            self._is_interrupted = True
        else:
            self._interrupt(self._waited)

    def _interrupt(self, waited: asyncio.Future[Any]) -> None:
        waited.cancel()
        handler = self._handler
        # Tasks and the like first end themselves.
        self._is_interrupted = type(waited) is not Future
        if handler is not None and not self._is_interrupted:
            self._step(handler.throw, CancelledError())

    def _end(self, error: BaseException) -> None:
        """End the call, because its handler returned (StopIteration) or raised."""
        if isinstance(error, StopIteration):
            if self._is_open:
                self._end_response(None)
        elif isinstance(error, CancelledError):
            if self._is_open:  # the handler cancelled itself
                self._end_response(StatusError(StatusCode.CANCELLED, "the call was cancelled"))
        elif isinstance(error, Exception):
            status = self._calls.services.observer.failed(self, error)
            if self._is_open:
                self._end_response(status)
        else:
            raise error
        self._handler = None
        self._forget()

    # --- the response ---------------------------------------------------------------------------

    def note_drained(self) -> None:
        """Let the handler go on: flow control has let its response pass."""
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(True)

    async def _wait_until_drained(self) -> None:
        calls = self._calls
        self._drained = drained = calls.loop.create_future()
        timer = calls.loop.call_later(calls.times.untaken, _give_up, drained)
        try:
            is_taken = await drained
        finally:
            timer.cancel()
            self._drained = None
        if not is_taken:
            self._reset(StatusCode.CANCELLED)
            seconds = calls.times.untaken
            details = f"the client did not take the response within {seconds:g} s"
            raise StatusError(StatusCode.CANCELLED, details)

    def cancel(self, code: StatusCode = StatusCode.CANCELLED) -> None:
        """End the handler, and send nothing more: the stream was reset, or the client hung up."""
        if self._is_open:
            self._close(code)
        self._end_handler()

    def _end_in_time(self) -> None:
        self._expire()
        self._calls.link.flush()

    def _expire(self) -> None:
        """End the call at its deadline."""
        error = StatusError(StatusCode.DEADLINE_EXCEEDED, "the deadline of the call has passed")
        if not self._is_answered:  # that of an open stream ends as its client planned
            self._calls.services.observer.failed(self, error)
        if self._drained is not None:  # trailers would wait behind the response
            self._reset(error.code)
        elif self._is_open:
            self._end_response(error)
        self._end_handler()

    def _reset(self, code: StatusCode) -> None:
        """Reset the stream: its response cannot be completed."""
        if self._is_open:
            self._calls.half.reset_stream(self.stream, ErrorCode.CANCEL)
            self._close(code)

    def _end_response(self, error: StatusError | None) -> None:
        """Send the status: OK if there is no error."""
        half = self._calls.half
        if self._is_answered:
            half.send_trailers(self.stream, TRAILERS_OK if error is None else trailers(error))
        elif error is None:
            half.send_headers(self.stream, RESPONSE_HEADERS)
            half.send_trailers(self.stream, TRAILERS_OK)
        else:
            half.send_headers(self.stream, trailers_only(error), end=True)
        self._close(StatusCode.OK if error is None else error.code)

    def _close(self, code: StatusCode) -> None:
        self._is_open = False
        self._code = code
        self._note_answered()

    def _note_answered(self) -> None:
        if not self._is_answered:
            self._is_answered = True
            self._calls.unanswered -= 1

    def _forget(self) -> None:
        """Stop counting the call: its handler has ended, or never began."""
        self._cancel_timer()
        if self._reader is not None:
            self._calls.held_bytes -= len(self._reader)
            self._reader = None
        self._calls.forget(self)
        self._calls.services.observer.ended(self, self._code)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _give_up(drained: asyncio.Future[bool]) -> None:
    if not drained.done():
        drained.set_result(False)
