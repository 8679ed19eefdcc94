"""One accepted connection: its bytes, its HTTP/2 half and its calls, and the watch on its process.

It ends when the client closes it, when its process exits (the poller watches the pidfd), at the
first byte of another process, even if that process holds the socket rightfully, and at a bound.

A connection owns its socket, and closes it at its end.
"""

from __future__ import annotations

import asyncio
import fcntl
import socket
import sys
import termios
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from agent.errors import PeerError, PeerGoneError, UnansweredError
from agent.kernel.caller import ask_again
from agent.kernel.sender import receive
from agent.limits.quotas import OverLimitError
from agent.transport.calls import Calls, CallTimes
from agent.transport.challenge import ANSWER_SECONDS, Challenge
from agent.transport.half import ConnectionFailed, ErrorCode, PingAnswered
from agent.transport.http2_server import Http2Server
from agent.transport.poller import HUNG_UP, READABLE, WRITABLE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agent.kernel.account import Account
    from agent.kernel.caller import Caller
    from agent.limits.fair_queue import Lane
    from agent.limits.quotas import Quotas
    from agent.transport.half import Event, Half
    from agent.transport.poller import Poller
    from agent.transport.service import Services

# Clients send their first request at once.
FIRST_REQUEST_SECONDS = 10.0
# A frame and a header block follow their first byte at once.
HALF_FRAME_SECONDS = 5.0
# The kernel holds some 200 KiB for a client that does not read; what is beyond costs the agent.
UNREAD_SECONDS = 20.0
# At stop: the time for a handshake, and for the answer that follows a GOAWAY.
GO_AWAY_SECONDS = 1.0
# Bytes are counted in such units: most calls hold less, and cost nothing to count.
COUNTED_BYTES = 4096

_WAITING = 0  # no event is asked for; HUNG_UP is reported anyway


class OverQuotaError(PeerError):
    """A quota of calls or of bytes is exhausted."""

    def __init__(self, error: OverLimitError) -> None:
        super().__init__(str(error))
        self.word = error.reason


class SilentError(PeerError):
    """The connection sent no request in time."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"no request within {seconds:g} s")


class SlowError(PeerError):
    """The client did not send the rest of a frame, or did not read, in time."""


class ProtocolError(PeerError):
    """The client broke a rule of HTTP/2, or sent more than the half's bounds allow."""

    def __init__(self, event: ConnectionFailed) -> None:
        super().__init__(f"{event.reason} ({event.code.name})")
        self.is_excess = event.code is ErrorCode.ENHANCE_YOUR_CALM


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionTimes:
    """How long a client may take, in seconds."""

    first_request: float = FIRST_REQUEST_SECONDS
    """To begin its first request."""
    half_frame: float = HALF_FRAME_SECONDS
    """To send the rest of a frame or of a header block."""
    unread: float = UNREAD_SECONDS
    """To read what the kernel holds for it no more."""
    answer: float = ANSWER_SECONDS
    """To answer a PING."""
    go_away: float = GO_AWAY_SECONDS
    """To begin its first call, and to answer the PING behind a GOAWAY, at stop."""
    calls: CallTimes = field(default_factory=CallTimes)


CONNECTION_TIMES = ConnectionTimes()


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """The parts that all connections of a socket share."""

    loop: asyncio.AbstractEventLoop
    poller: Poller
    services: Services
    quotas: Quotas
    make_half: Callable[[], Half] = Http2Server
    times: ConnectionTimes = CONNECTION_TIMES


@dataclass(frozen=True, slots=True)
class Admitted:
    """A connection's caller, account and lane. Where the kernel cannot name it, `caller` is why."""

    caller: Caller | PeerError
    account: Account
    lane: Lane
    """The lane of the fair queue in which its bytes wait."""


class Connection:
    """A connection on the socket `sock`.

    `on_end` is called once, after its end, with the reason: a text, or the error that ended it.
    """

    __slots__ = (
        "_began",
        "_challenge",
        "_counted",
        "_ended",
        "_events",
        "_frame_timer",
        "_half",
        "_held",
        "_is_half_closed",
        "_is_taking",
        "_on_end",
        "_progress",
        "_received",
        "_serving",
        "_silence",
        "_sock",
        "_unread_timer",
        "_unsent",
        "_waits",
        "admitted",
        "calls",
    )

    def __init__(
        self,
        serving: Serving,
        sock: socket.socket,
        admitted: Admitted,
        on_end: Callable[[Connection, str | PeerError], None],
    ) -> None:
        self.admitted = admitted
        self._serving = serving
        self._sock = sock
        self._on_end = on_end
        self._half = serving.make_half()
        self.calls = Calls(self._half, serving.services, self, serving.loop, serving.times.calls)
        """The gRPC calls."""
        self._began = serving.loop.time()
        self._received = 0  # bytes of the client
        self._unsent = b""  # bytes that the socket does not take yet
        self._counted = 0  # open calls that the quota counts
        self._held = 0  # bytes that the quota counts
        self._events = -1  # what the poller watches for; -1 at first
        self._waits = False  # in its lane
        self._is_half_closed = False  # the client sends nothing more
        self._is_taking = False  # the events of a read
        self._ended = False
        self._silence: asyncio.TimerHandle | None = None
        self._frame_timer: asyncio.TimerHandle | None = None
        self._unread_timer: asyncio.TimerHandle | None = None
        self._challenge: Challenge | None = None
        self._progress: asyncio.Event | None = None  # exists while a task waits, to save memory

    def start(self) -> None:
        """Watch its process, and serve it when its lane passes it.

        Raises:
            OSError: the poller cannot watch it.
        """
        caller = self.admitted.caller
        if not isinstance(caller, PeerError):
            self._serving.poller.register(caller.process.fileno(), self._on_exit, READABLE)
        if self.admitted.lane.pass_or_wait(self._begin):
            self._begin()
        else:
            self._waits = True
            self._watch()

    def end(self, reason: str | PeerError) -> None:
        """Close it at once. A second call has no effect."""
        if self._ended:
            return
        self._ended = True
        for timer in (self._silence, self._frame_timer, self._unread_timer):
            if timer is not None:
                timer.cancel()
        poller, caller = self._serving.poller, self.admitted.caller
        poller.forget(self._sock.fileno())
        self._sock.close()
        if not isinstance(caller, PeerError):
            poller.forget(caller.process.fileno())
        self.calls.close()
        if self._challenge is not None:
            self._challenge.close()
        self._count_calls(0)
        self._serving.quotas.buffer_bytes(self.admitted.account, self._held, 0)
        self._note_progress()
        self._on_end(self, reason)

    # --- for its calls (agent.transport.calls.Link) -----------------------------------------------

    @property
    def peer(self) -> Caller | None:
        """The caller as the kernel named it at connect; None if it could not."""
        caller = self.admitted.caller
        return None if isinstance(caller, PeerError) else caller

    def caller(self) -> Caller:
        """Ask the kernel again for the caller.

        Raises:
            PeerError: the kernel cannot name it, or names another one than at connect.
        """
        caller = self.admitted.caller
        if isinstance(caller, PeerError):
            # The traceback of the last raise would keep that call's objects in memory.
            raise caller.with_traceback(None)
        if self._ended:
            raise PeerGoneError("the connection ended")
        ask_again(self._sock, caller)
        return caller

    def is_behind(self) -> bool:
        """Return whether the agent itself leaves the client's bytes in the socket."""
        return self._waits or bool(self._unsent)

    def flush(self) -> None:
        """Send the half's output, and count what is open and held."""
        if self._ended or self._is_taking:  # a handler's first step asked: the turn flushes
            return
        try:
            self._count_calls(len(self.calls))  # before the responses go
            if self._send():
                self._count_bytes()
                self._note_progress()
                if self._is_half_closed and self._is_idle():
                    self.end("closed")
        except OverLimitError as error:
            self._cut(OverQuotaError(error))

    def _cut(self, error: OverQuotaError) -> None:
        """End it, and say why if the socket takes so much."""
        if not self._unsent:
            self._half.go_away(last=True, code=ErrorCode.ENHANCE_YOUR_CALM, reason=str(error))
            with suppress(OSError):  # the quota is the reason, even if the client has hung up
                self._sock.send(self._half.take_output(), socket.MSG_NOSIGNAL)
        self.end(error)

    async def prove(self) -> None:
        """Return when the caller's process has answered a new PING.

        Raises:
            PeerGoneError: the connection ended.
            UnansweredError: there is no answer.
        """
        if self._ended:
            raise PeerGoneError("the connection ended")
        if self._challenge is None:
            self._challenge = Challenge(self._ping, self._queued, self._serving.times.answer)
        await self._challenge.prove()

    def _ping(self, payload: bytes) -> None:
        self._half.ping(payload)
        self.flush()

    def _queued(self) -> int:
        return self._received + unread_bytes(self._sock)

    # --- at stop ----------------------------------------------------------------------------------

    async def go_away(self) -> None:
        """Send GOAWAY in two steps, and return when no call waits for its first response.

        The first step names no last stream: calls that are on their way are served. The answer to
        the PING behind it shows that the client has seen it; then the second step names the last.

        A client that has just connected first makes its call: a gRPC client that receives GOAWAY in
        its handshake may stay without a connection until its deadline.
        """
        seconds = self._serving.times.go_away
        handshake = self._began + seconds - self._serving.loop.time()
        with suppress(TimeoutError):
            async with asyncio.timeout(handshake):
                await self._until(lambda: self.calls.begun > 0)
        self._send_go_away(last=False)
        with suppress(TimeoutError, PeerGoneError, UnansweredError):
            async with asyncio.timeout(seconds):
                await self.prove()
        self._send_go_away(last=True)
        await self._until(lambda: not self.calls.unanswered)

    def _send_go_away(self, *, last: bool) -> None:
        if not self._ended:
            self._half.go_away(last=last)
            self.flush()

    async def wait_for_calls(self) -> None:
        """Return when no call is open, and all responses are sent."""
        await self._until(self._is_idle)

    def _is_idle(self) -> bool:
        return not len(self.calls) and not self._unsent

    async def _until(self, holds: Callable[[], bool]) -> None:
        while not self._ended and not holds():
            if self._progress is None:
                self._progress = asyncio.Event()
            await self._progress.wait()

    def _note_progress(self) -> None:
        if self._progress is not None:
            self._progress.set()
            self._progress = None

    # --- what the poller reports ------------------------------------------------------------------

    def _on_exit(self, _events: int) -> None:
        caller = self.admitted.caller
        if not self._ended and not isinstance(caller, PeerError) and not caller.process.is_alive():
            self.end("process exited")

    def _on_ready(self, events: int) -> None:
        if self._ended:
            return
        is_unread = self._waits or self._is_half_closed
        if is_unread and events & HUNG_UP:
            self.end("closed")  # nobody takes the responses; and it is reported until the end
        elif self._unsent:
            self._go_on()
        elif is_unread:
            pass  # an event that is out of date
        elif self.admitted.lane.pass_or_wait(self._resume):
            self._take_turn()
        else:
            self._waits = True
            self._watch()

    def _watch(self) -> None:
        """Watch the socket for what it waits for. Its turns concern reads alone."""
        is_unread = self._waits or self._is_half_closed
        events = WRITABLE if self._unsent else _WAITING if is_unread else READABLE
        if self._events < 0:
            self._serving.poller.register(self._sock.fileno(), self._on_ready, events)
        elif events != self._events:
            self._serving.poller.modify(self._sock.fileno(), events)
        self._events = events

    # --- its turns --------------------------------------------------------------------------------

    def _begin(self) -> None:
        if not self._ended:
            self.admitted.lane.note_connection()
            seconds = self._serving.times.first_request
            self._silence = self._serving.loop.call_later(seconds, self._end_if_silent, seconds)
        self._resume()  # the client's first bytes are mostly there

    def _resume(self) -> None:
        self._waits = False
        if self._ended or self._unsent:  # it is read when the client has read
            self.admitted.lane.note_read(0)
        else:
            self._take_turn()
        if not self._ended:
            self._watch()

    def _take_turn(self) -> None:
        lane, before = self.admitted.lane, self.calls.begun
        try:
            # The rest of a body begins no call: a large request costs one read for each frame.
            self._read(max(lane.read_bytes, self._half.missing_body))
        except BaseException:
            self.end("internal error")
            raise
        finally:
            lane.note_read(self.calls.begun - before)

    def _read(self, most: int) -> None:
        caller = self.admitted.caller
        try:
            if isinstance(caller, PeerError):  # every call is refused, whichever process sends it
                chunk = self._sock.recv(most)
            else:
                chunk = receive(self._sock, most, caller)
        except (BlockingIOError, InterruptedError):
            self.flush()  # the first SETTINGS, before the client has sent anything
        except PeerError as error:
            self.end(error)
        except OSError as error:
            self.end(f"reset ({error.strerror})")
        else:
            if chunk:
                self._take(chunk)
            else:
                self._take_end()

    def _take(self, chunk: bytes) -> None:
        self._received += len(chunk)
        half = self._half
        events = half.feed(chunk, self._serving.loop.time())
        if events:
            self._is_taking = True
            self.calls.take(events)
            self._is_taking = False
            self._take_own(events)
        self.flush()
        if not self._ended:
            self._bound_frame(has_progressed=bool(events))
            if self._silence is not None and self.calls.begun:
                self._silence.cancel()  # cheaper than a timer that fires
                self._silence = None

    def _take_end(self) -> None:
        """Send the responses to the calls before the end: a client may say early that it is done.

        A client that closed its socket takes none. The poller reports that one (HUNG_UP).
        """
        self._is_half_closed = True
        if len(self.calls):
            self._watch()
        else:
            self.end("closed")

    def _take_own(self, events: Sequence[Event]) -> None:
        """Take the events of the connection."""
        for event in events:
            if type(event) is PingAnswered:
                if self._challenge is not None:
                    self._challenge.take(event)
            elif type(event) is ConnectionFailed:
                self._send()  # the GOAWAY
                self.end(ProtocolError(event))
                return

    # --- what goes --------------------------------------------------------------------------------

    def _send(self) -> bool:
        """Send until there is no output, or the socket takes no more; return whether it is open.

        Flow control counts what is taken from the half: the rest stays there while the client does
        not read.
        """
        half = self._half
        while not self._unsent:
            data = half.take_output()
            if not data:
                break
            sent = self._write(data)
            if sent is None:
                return False
            if sent < len(data):
                self._keep_unsent(data[sent:])
                self._watch()
            events = half.take_events()
            if events:
                self.calls.take(events)
        return True

    def _go_on(self) -> None:
        """Send the rest of the output."""
        sent = self._write(self._unsent)
        if not sent:
            return
        self._keep_unsent(self._unsent[sent:])
        if self._unsent:
            return
        self.flush()
        if not self._ended:
            self._watch()

    def _keep_unsent(self, data: bytes) -> None:
        """Keep what the socket does not take. The time to read it begins again at each progress."""
        self._unsent = data
        if self._unread_timer is not None:
            self._unread_timer.cancel()
            self._unread_timer = None
        if data:
            seconds = self._serving.times.unread
            self._unread_timer = self._serving.loop.call_later(seconds, self._end_unread)

    def _write(self, data: bytes) -> int | None:
        """Return how much the socket took; None if it failed, which ends the connection."""
        try:
            return self._sock.send(data, socket.MSG_NOSIGNAL)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as error:
            self.end(f"reset ({error.strerror})")
            return None

    # --- bounds -----------------------------------------------------------------------------------

    def _count_calls(self, now: int) -> None:
        """Count the open calls.

        Raises:
            OverLimitError: the quota is exhausted.
        """
        if now != self._counted:
            self._serving.quotas.calls(self.admitted.account, self._counted, now)
            self._counted = now

    def _count_bytes(self) -> None:
        """Count the bytes that are held for the client.

        Raises:
            OverLimitError: the quota is exhausted.
        """
        held = self._half.held_bytes + self.calls.held_bytes + len(self._unsent)
        held -= held % COUNTED_BYTES
        if held != self._held:
            self._serving.quotas.buffer_bytes(self.admitted.account, self._held, held)
            self._held = held

    def _bound_frame(self, *, has_progressed: bool) -> None:
        """Bound the time of a frame that has begun: an event means that the last one has ended."""
        is_mid_frame, timer = self._half.is_mid_frame, self._frame_timer
        if timer is not None and (has_progressed or not is_mid_frame):
            timer.cancel()
            timer = self._frame_timer = None
        if is_mid_frame and timer is None:
            seconds = self._serving.times.half_frame
            self._frame_timer = self._serving.loop.call_later(seconds, self._end_half_frame)

    def _end_half_frame(self) -> None:
        seconds = self._serving.times.half_frame
        if self.is_behind():
            self._frame_timer = self._serving.loop.call_later(seconds, self._end_half_frame)
        else:
            self.end(SlowError(f"half a frame or header block for {seconds:g} s"))

    def _end_if_silent(self, seconds: float) -> None:
        if self.is_behind():
            self._silence = self._serving.loop.call_later(seconds, self._end_if_silent, seconds)
        elif not self.calls.begun:
            self.end(SilentError(seconds))

    def _end_unread(self) -> None:
        seconds = self._serving.times.unread
        self.end(SlowError(f"the client did not read its responses for {seconds:g} s"))


def unread_bytes(sock: socket.socket) -> int:
    """Return the number of bytes to read (unix(7), SIOCINQ); 0 also at the end of the stream."""
    return int.from_bytes(fcntl.ioctl(sock, termios.FIONREAD, bytes(4)), sys.byteorder)
