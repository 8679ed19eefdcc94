"""Accept connections in batches, and close those that the client has hung up already.

Connections wait in the kernel's queue in the order of their arrival (listen(2)). A connection that
was hung up must therefore cost little. The acceptor takes a batch, asks poll(2) once for the whole
batch, and closes the hung-up connections: some five microseconds each. It reports their user, so
that a user that makes too many of them can be kept out of the queue (agent.limits.lockout).
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import socket
from collections import deque
from typing import TYPE_CHECKING

from agent.kernel.credentials import read_user
from agent.signals import NO_SIGNALS, Refused
from agent.telemetry.throttled_log import Rate, ThrottledLog

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence
    from collections.abc import Set as AbstractSet

    from structlog.typing import FilteringBoundLogger

    from agent.signals import Signals

BATCH = 16
# Batches of hung-up connections that one turn of the event loop takes. Then the loop serves the
# open connections.
BATCHES_PER_TURN = 4
# Without free descriptors every accept fails at once. The pause gives connections time to end.
DESCRIPTORS_PAUSE = 0.1
# Log lines of each errno of accept(2).
LINES_PER_ERRNO = Rate(1, 10.0)

_ACCEPT4 = ctypes.CDLL(None, use_errno=True).accept4
_ACCEPT4.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int)
_ACCEPTED = socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
# These end a batch: no connection is left, or the client closed the next one.
_END_OF_BATCH = frozenset({errno.EAGAIN, errno.EINTR, errno.ECONNABORTED})


class Acceptor:
    """Accepts on one listener after `start`, and hands each connection to `admit`, which owns it.

    `admit` may raise OSError if the agent is out of descriptors or memory: it has then closed the
    connection, and the acceptor pauses. `open_connections` returns their number, for the log.
    `user_of` reads the user of a socket's peer.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        admit: Callable[[socket.socket], None],
        open_connections: Callable[[], int],
        log: FilteringBoundLogger,
        signals: Signals = NO_SIGNALS,
        user_of: Callable[[socket.socket], int] = read_user,
    ) -> None:
        self._loop = loop
        self._admit = admit
        self._open_connections = open_connections
        self._signals = signals
        self._user_of = user_of
        self._listener: socket.socket | None = None
        self._hung_up: Callable[[int, int], None] = lambda _uid, _times: None
        self._arrived: deque[socket.socket] = deque()
        self._throttled = ThrottledLog(log, LINES_PER_ERRNO, seconds=loop.time)
        self._sample = 0

    @property
    def accepts(self) -> bool:
        """Whether new connections are accepted."""
        return self._listener is not None

    def start(self, listener: socket.socket, hung_up: Callable[[int, int], None]) -> None:
        """Start accepting. `hung_up` takes a user and the number of its hung-up connections."""
        self._listener, self._hung_up = listener, hung_up
        self._listen(listener)

    def stop(self) -> None:
        """Stop accepting, and close the connections that were accepted and not yet admitted."""
        if self._listener is not None:
            self._loop.remove_reader(self._listener)
            self._listener = None
        while self._arrived:
            self._arrived.popleft().close()

    def _listen(self, listener: socket.socket) -> None:
        self._loop.add_reader(listener, self._on_connect, listener)

    def _on_connect(self, listener: socket.socket) -> None:
        try:
            self._take_turn(listener)
            while self._arrived:
                self._admit(self._arrived.popleft())
        except OSError as error:
            self._pause(listener, error)

    def _take_turn(self, listener: socket.socket) -> None:
        for _ in range(BATCHES_PER_TURN):
            if self._arrived:
                return
            accepted = _accept(listener, BATCH)
            gone = _hung_up(accepted)
            self._arrived.extend(_wrapped(each) for each in accepted if each not in gone)
            if gone:
                self._drop(tuple(gone))
            if len(accepted) < BATCH:
                return

    def _drop(self, gone: Sequence[int]) -> None:
        # The user of one connection counts for the whole batch: in a flood most are the flooder's.
        # Each batch samples another position, so that a flooder cannot place another user's there.
        self._sample += 1
        with _wrapped(gone[self._sample % len(gone)]) as sock:
            try:
                uid = self._user_of(sock)
            finally:
                for descriptor in gone:
                    if descriptor != sock.fileno():
                        os.close(descriptor)
        self._signals.refused(Refused.GONE, len(gone))
        self._hung_up(uid, len(gone))

    def _pause(self, listener: socket.socket, error: OSError) -> None:
        self._throttled.warning(
            "cannot accept connections",
            error.errno,
            reason=error.strerror,
            connections=self._open_connections(),
        )
        self._loop.remove_reader(listener)
        self._loop.call_later(DESCRIPTORS_PAUSE, self._resume)

    def _resume(self) -> None:
        if self._listener is not None:
            self._listen(self._listener)
            self._on_connect(self._listener)


def _accept(listener: socket.socket, most: int) -> Sequence[int]:
    """Accept at most so many connections, and return their descriptors.

    It calls accept4(2): socket.accept() makes two objects for each connection, and takes 60 %
    longer. In a flood of hung-up connections all other users wait for that.

    Raises:
        OSError: there is none, and the next call would fail too (accept(2)).
    """
    descriptors: list[int] = []
    while len(descriptors) < most:
        descriptor = _ACCEPT4(listener.fileno(), None, None, _ACCEPTED)
        if descriptor < 0:
            number = ctypes.get_errno()
            if descriptors or number in _END_OF_BATCH:
                break
            raise OSError(number, os.strerror(number))
        descriptors.append(descriptor)
    return descriptors


def _hung_up(descriptors: Sequence[int]) -> AbstractSet[int]:
    """Return those whose client has hung up."""
    asked = select.poll()
    for descriptor in descriptors:
        asked.register(descriptor, 0)  # poll(2) reports POLLHUP without being asked for it
    return {descriptor for descriptor, _events in asked.poll(0)}


def _wrapped(descriptor: int) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, descriptor)
    sock.settimeout(0)
    return sock
