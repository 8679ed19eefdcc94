"""One accepted connection: in its turn it is relayed to the server, and watched while it is.

It ends when either side ends it, the moment its process exits (the pidfd polls readable), and at
the first byte of anybody else, whoever may still hold the socket.

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
from agent.transport.relay import CHUNK_BYTES, Relay, Side, at_once, unread_bytes

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from agent.kernel.account import Account
    from agent.kernel.caller import Caller
    from agent.limits.fair_queue import Lane
    from agent.limits.quotas import Quotas

ConnectionToken = NewType("ConnectionToken", str)

# How often, and how many times, the inner server is tried again while it cannot be reached.
INNER_RETRY_SECONDS = 0.01
INNER_ATTEMPTS = 300
# A full queue, and no descriptors left: others come to an end meanwhile.
_PASSING = frozenset({errno.EAGAIN, errno.EMFILE, errno.ENFILE})


class TooManyCallsError(PeerError):
    """One call more is too much."""

    def __init__(self, error: OverLimitError) -> None:
        super().__init__(str(error))
        self.word = error.reason


class SilentError(PeerError):
    """It has not asked for anything."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"no request within {seconds:g} s")


@dataclass(frozen=True, slots=True)
class Admitted:
    """Who came in. `caller` is an error where the kernel could not name the peer."""

    caller: Caller | PeerError
    account: Account
    lane: Lane
    """Where what it sends waits for its turn."""


class Connection:
    """A connection on the socket `outer`. `call_bytes`: the most bytes of a call's request.

    `on_end` is called once, after it has ended, with the reason: a word, or the error that cut it.
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
        """Its name on the side of the server, which nobody can guess."""
        self.admitted = admitted
        self.calls = 0
        """With how many the server has begun."""
        self.challenge = Challenge(self._send, call_bytes)
        self._loop = loop
        self._outer = outer
        self._quotas = quotas
        self._on_end = on_end
        self._unbegun = 0  # how many the server can begin with and has not
        self._counted = 0  # how many are under way, as `quotas` was told
        self._relay: Relay | None = None
        self._silence: asyncio.TimerHandle | None = None
        self._ended = False

    @property
    def caller(self) -> Caller:
        """Who made it.

        Raises:
            PeerError: the kernel could not name the peer.
        """
        if isinstance(self.admitted.caller, PeerError):
            # Without the trace of the last call, all that was at hand in which would be kept.
            raise self.admitted.caller.with_traceback(None)
        return self.admitted.caller

    def start(self, inner_path: str, first_request_seconds: float) -> None:
        """Relay it to the server there when it is its turn; it may be silent for so long."""
        if not isinstance(self.admitted.caller, PeerError):
            self._loop.add_reader(self.admitted.caller.process, self.end, "process exited")
        begin = partial(self._connect_in_turn, inner_path, first_request_seconds)
        if self.admitted.lane.pass_or_wait(begin):
            begin()

    def begin_call(self) -> None:
        """The server has begun with a call."""
        self.calls += 1
        if self._unbegun:  # one that needs no message, as of an unknown method, was never counted
            self._unbegun -= 1
            self.admitted.lane.begun()

    def end(self, reason: str | PeerError) -> None:
        """Cut it at once; again is harmless."""
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

    def _connect_in_turn(self, inner_path: str, first_request_seconds: float) -> None:
        if self._ended:
            return
        if has_hung_up(self._outer):
            self.admitted.lane.passed(0, 0)
            self.end("closed")
        else:
            self.admitted.lane.connected()
            self._connect(inner_path, first_request_seconds, INNER_ATTEMPTS)

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
            if error.errno in _PASSING and attempts:
                again = partial(self._connect, inner_path, first_request_seconds, attempts - 1)
                self._loop.call_later(INNER_RETRY_SECONDS, again)
            else:
                self.end(f"agent cannot relay ({error.strerror})")
        else:
            self._start_relay(inner)
            self._await_request(first_request_seconds)

    def _start_relay(self, inner: socket.socket) -> None:
        turn = partial(self.admitted.lane.pass_or_wait, unread=partial(unread_bytes, self._outer))
        self._relay = Relay(
            self._loop,
            Side(self._outer, self._client_reader(), turn),
            Side(inner, partial(self._read_server, inner), at_once),
            self.end,
        )
        self._relay.start()

    def _await_request(self, seconds: float) -> None:
        self._silence = self._loop.call_later(seconds, self._end_if_silent, seconds)

    def _end_if_silent(self, seconds: float) -> None:
        if self._relay is not None and self._relay.outbound.waiting:
            self._await_request(seconds)  # we were not listening
        elif not self.challenge.frames.requests:
            self.end(SilentError(seconds))

    # --- what passes ----------------------------------------------------------------------------

    def _client_reader(self) -> Callable[[], bytes | None]:
        caller, outer, lane = self.admitted.caller, self._outer, self.admitted.lane
        if isinstance(caller, PeerError):  # refused anyway, whoever speaks
            return lambda: self._from_client(outer.recv(lane.bite))
        return lambda: self._from_client(receive(outer, lane.bite, caller))

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
                self._silence.cancel()  # to find out later that all is well costs more
                self._silence = None
        except OverLimitError as error:
            raise TooManyCallsError(error) from error
        else:
            return passing
        finally:
            complete = frames.complete - complete
            self._unbegun += complete
            self.admitted.lane.passed(frames.requests - requests, complete)

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
    """Whether there is nothing to read, nor will be."""
    try:
        return not sock.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True
