"""The gRPC calls of one connection: what the HTTP/2 half finds goes to the call that it concerns.

A call counts from its header block until its handler has ended, also after the client or the half
has reset its stream: otherwise a client could start any number of handlers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from agent.transport.grpc_protocol import NO_REQUEST, read_request, reset_error
from agent.transport.half import (
    BodyReceived,
    ErrorCode,
    RequestStarted,
    StreamDrained,
    StreamReset,
)
from agent.transport.served_call import ServedCall
from agent.transport.service import StatusCode

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable

    from agent.kernel.caller import Caller
    from agent.transport.half import Event, Half
    from agent.transport.service import Services

# A client sends a small request at once, and half of one costs memory.
HALF_REQUEST_SECONDS = 10.0
# A client that waits for a response takes it at once. A response that is not taken costs memory.
UNTAKEN_SECONDS = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CallTimes:
    """How long a client may take, in seconds."""

    half_request: float = HALF_REQUEST_SECONDS
    """To complete a request message, and the request of a method with one message."""
    untaken: float = UNTAKEN_SECONDS
    """To let a response pass by flow control."""


class Link(Protocol):
    """The connection, as its calls need it."""

    @property
    def peer(self) -> Caller | None:
        """See Call.peer."""
        ...

    def caller(self) -> Caller:
        """See Call.caller."""
        ...

    def is_behind(self) -> bool:
        """Return whether the agent itself leaves the client's bytes in the socket."""
        ...

    def flush(self) -> None:
        """Send the half's output, and look at the counts of the calls.

        Called after changes outside of `Calls.take`.
        """
        ...


class Calls:
    """The calls of a connection.

    Args:
        half: the server's half of HTTP/2.
        services: the methods.
        link: the connection.
        loop: for tasks and timers.
        times: how long a client may take.
    """

    __slots__ = (
        "_calls",
        "_incomplete",
        "begun",
        "half",
        "held_bytes",
        "is_closed",
        "link",
        "loop",
        "services",
        "times",
        "unanswered",
    )

    def __init__(
        self,
        half: Half,
        services: Services,
        link: Link,
        loop: asyncio.AbstractEventLoop,
        times: CallTimes = CallTimes(),
    ) -> None:
        self.half = half
        self.services = services
        self.link = link
        self.loop = loop
        self.times = times
        self.begun = 0
        """The number of calls so far, those that were refused included."""
        self.unanswered = 0
        """The number of open calls without a response."""
        self.held_bytes = 0
        """The bytes of requests that are held: bodies, and header blocks of unusual size."""
        self.is_closed = False
        self._calls: dict[int, ServedCall] = {}
        # Those whose header block came in this turn, and nearly always their message too.
        self._incomplete: list[ServedCall] = []

    def __len__(self) -> int:
        """The number of calls with an incomplete request, or a handler that has not ended."""
        return len(self._calls)

    def take(self, events: Iterable[Event]) -> None:
        """Take what the half found in the client's bytes. Handlers begin here."""
        for event in events:
            if isinstance(event, RequestStarted):
                self._start(event)
            elif isinstance(event, BodyReceived):
                if call := self._calls.get(event.stream):
                    call.take_body(event.data, ended=event.ended)
            elif isinstance(event, StreamReset):
                self._take_reset(event)
            elif isinstance(event, StreamDrained) and (call := self._calls.get(event.stream)):
                call.note_drained()
        if self._incomplete:
            for call in self._incomplete:
                call.bound_request()
            self._incomplete.clear()

    def close(self) -> None:
        """Cancel every handler: the connection has ended. The half is not used any more."""
        self.is_closed = True
        for call in tuple(self._calls.values()):
            if call.stream in self._calls:  # it may have ended with another
                call.cancel()

    def forget(self, call: ServedCall) -> None:
        """Stop counting a call."""
        del self._calls[call.stream]
        self.held_bytes -= call.header_bytes
        if not self.is_closed:
            self.half.release(call.stream)

    def _start(self, event: RequestStarted) -> None:
        if self.is_closed:
            return
        request, services = read_request(event.headers), self.services
        method = services.methods.get(request.path, services.unknown)
        call = ServedCall(self, event.stream, request, method)
        self._calls[event.stream] = call
        self.held_bytes += call.header_bytes
        self.begun += 1
        self.unanswered += 1
        if not call.start(ended=event.ended):
            self._incomplete.append(call)

    def _take_reset(self, event: StreamReset) -> None:
        call, services = self._calls.get(event.stream), self.services
        code = StatusCode.CANCELLED
        # A client learns late how many streams it may open: one too many breaks no rule.
        if not event.by_client and event.code != ErrorCode.REFUSED_STREAM:
            error = reset_error(event.code)
            code = error.code
            if call is None:
                self.begun += 1
            named = call or ServedCall(self, event.stream, NO_REQUEST, services.unknown)
            services.observer.failed(named, error)
        if call is not None:
            call.cancel(code)
