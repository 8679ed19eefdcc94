"""One accepted connection: relay it to the gRPC server, and watch its process's pidfd meanwhile.

It ends when either side closes it, when its process exits (the event loop watches the pidfd), and
at the first byte of another process, even if that process holds the socket rightfully.

A connection owns its sockets, and closes them at its end.
"""

from __future__ import annotations

import errno
import secrets
import socket
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NewType

from agent.errors import PeerError
from agent.kernel.sender import receive
from agent.limits.quotas import OverLimitError
from agent.transport.challenge import Challenge
from agent.transport.relay import CHUNK_BYTES, Relay, Side, unread_bytes

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from agent.kernel.account import Account
    from agent.kernel.caller import Caller
    from agent.limits.fair_queue import Lane
    from agent.limits.quotas import Quotas

ConnectionToken = NewType("ConnectionToken", str)

# Retries while the inner server cannot be reached.
INNER_RETRY_SECONDS = 0.01
INNER_ATTEMPTS = 300
# A full queue, or no free descriptors: other connections may end meanwhile.
_TEMPORARY = frozenset({errno.EAGAIN, errno.EMFILE, errno.ENFILE})


class TooManyCallsError(PeerError):
    """The quota of calls is exhausted."""

    def __init__(self, error: OverLimitError) -> None:
        super().__init__(str(error))
        self.word = error.reason


class SilentError(PeerError):
    """The connection sent no request in time."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"no request within {seconds:g} s")


@dataclass(frozen=True, slots=True)
class Admitted:
    """A connection's caller, account and lane. Where the kernel cannot name it, `caller` is why."""

    caller: Caller | PeerError
    account: Account
    lane: Lane
    """The lane of the fair queue in which its bytes wait."""


class Connection:
    """A connection on the socket `outer`. `call_bytes` bounds the bytes of a request.

    `on_end` is called once, after its end, with the reason: a text, or the error that ended it.
    """

    __slots__ = (
        "_counted",
        "_ended",
        "_loop",
        "_on_end",
        "_outer",
        "_quotas",
        "_relay",
        "_silence",
        "_unbegun",
        "admitted",
        "calls",
        "challenge",
        "token",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        outer: socket.socket,
        admitted: Admitted,
        quotas: Quotas,
        call_bytes: float,
        on_end: Callable[[Connection, str | PeerError], None],
    ) -> None:
        self.token = ConnectionToken(secrets.token_hex(16))
        """The name of its inner connection, which no other process can guess."""
        self.admitted = admitted
        self.calls = 0
        """The number of calls with which the server has begun."""
        self.challenge = Challenge(self._send, call_bytes)
        self._loop = loop
        self._outer = outer
        self._quotas = quotas
        self._on_end = on_end
        self._unbegun = 0  # complete requests with which the server has not begun
        self._counted = 0  # open calls that `quotas` counts
        self._relay: Relay | None = None
        self._silence: asyncio.TimerHandle | None = None
        self._ended = False

    @property
    def caller(self) -> Caller:
        """The caller that made it.

        Raises:
            PeerError: the kernel could not name the peer.
        """
        if isinstance(self.admitted.caller, PeerError):
            # The traceback of the last raise would keep that call's objects in memory.
            raise self.admitted.caller.with_traceback(None)
        return self.admitted.caller

    def start(
        self, inner_path: str, first_request_seconds: float, attempts: int = INNER_ATTEMPTS
    ) -> None:
        """Relay it to the server behind `inner_path` when its lane passes it."""
        if not isinstance(self.admitted.caller, PeerError):
            self._loop.add_reader(self.admitted.caller.process, self.end, "process exited")
        begin = partial(self._connect_in_turn, inner_path, first_request_seconds, attempts)
        if self.admitted.lane.pass_or_wait(begin):
            begin()

    def begin_call(self) -> None:
        """Note that the server has begun with a call."""
        self.calls += 1
        # The server begins with a call of an unknown method before its request is complete: such a
        # call was never counted.
        if self._unbegun:
            self._unbegun -= 1
            self.admitted.lane.note_begun()

    def end(self, reason: str | PeerError) -> None:
        """Close it at once. A second call has no effect."""
        if self._ended:
            return
        self._ended = True
        if self._silence is not None:
            self._silence.cancel()
        if self._relay is not None:
            self._relay.close(reason)
        self.challenge.close()
        self._outer.close()
        if not isinstance(self.admitted.caller, PeerError):
            self._loop.remove_reader(self.admitted.caller.process)
        self._count_calls(0)
        self._on_end(self, reason)

    # --- to the server --------------------------------------------------------------------------

    def _connect_in_turn(
        self, inner_path: str, first_request_seconds: float, attempts: int
    ) -> None:
        if self._ended:
            return
        if has_hung_up(self._outer):
            self.admitted.lane.note_read(0, 0)
            self.end("closed")
        else:
            self.admitted.lane.note_connection()
            self._connect(inner_path, first_request_seconds, attempts)

    def _connect(self, inner_path: str, first_request_seconds: float, attempts: int) -> None:
        if self._ended:
            return
        inner = None
        try:
            inner = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            inner.bind(f"\0{self.token}")
            inner.connect(inner_path)
        except OSError as error:
            if inner is not None:
                inner.close()
            if error.errno in _TEMPORARY and attempts:
                again = partial(self._connect, inner_path, first_request_seconds, attempts - 1)
                self._loop.call_later(INNER_RETRY_SECONDS, again)
            else:
                self.end(f"agent cannot relay ({error.strerror})")
        else:
            self._start_relay(inner)
            self._await_request(first_request_seconds)

    def _start_relay(self, inner: socket.socket) -> None:
        may_read = partial(
            self.admitted.lane.pass_or_wait, unread=partial(unread_bytes, self._outer)
        )
        self._relay = Relay(
            self._loop,
            Side(self._outer, self._client_reader(), may_read),
            Side(inner, partial(self._read_server, inner)),
            self.end,
        )
        self._relay.start()

    def _await_request(self, seconds: float) -> None:
        self._silence = self._loop.call_later(seconds, self._end_if_silent, seconds)

    def _end_if_silent(self, seconds: float) -> None:
        if self._relay is not None and self._relay.outbound.waiting:
            self._await_request(seconds)  # the agent did not read meanwhile
        elif not self.challenge.frames.requests:
            self.end(SilentError(seconds))

    # --- bytes ----------------------------------------------------------------------------------

    def _client_reader(self) -> Callable[[], bytes | None]:
        caller, outer, lane = self.admitted.caller, self._outer, self.admitted.lane
        if isinstance(caller, PeerError):  # every call is refused, whichever process sends it
            return lambda: self._from_client(outer.recv(lane.read_bytes))
        return lambda: self._from_client(receive(outer, lane.read_bytes, caller))

    def _from_client(self, chunk: bytes) -> bytes | None:
        if not chunk:
            return None
        challenge, frames = self.challenge, self.challenge.frames
        requests, complete = frames.requests, frames.complete
        try:
            passing = challenge.from_client(chunk)
            if len(challenge.open) != self._counted:
                self._count_calls(len(challenge.open))
            if self._silence is not None and frames.requests:
                self._silence.cancel()  # cheaper than a timer that fires
                self._silence = None
        except OverLimitError as error:
            raise TooManyCallsError(error) from error
        else:
            return passing
        finally:
            complete = frames.complete - complete
            self._unbegun += complete
            self.admitted.lane.note_read(frames.requests - requests, complete)

    def _read_server(self, inner: socket.socket) -> bytes | None:
        chunk = inner.recv(CHUNK_BYTES)
        if not chunk:
            return None
        challenge = self.challenge
        passing = challenge.to_client(chunk)
        if len(challenge.open) != self._counted:
            self._count_calls(len(challenge.open))
        return passing

    def _send(self, data: bytes) -> None:
        if self._relay is not None:
            self._relay.inbound.send(data)

    def _count_calls(self, now: int) -> None:
        self._quotas.calls(self.admitted.account, self._counted, now)
        self._counted = now


def has_hung_up(sock: socket.socket) -> bool:
    """Return whether the client has hung up and left nothing to read."""
    try:
        return not sock.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True
