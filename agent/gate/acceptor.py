"""Accepts connections, many in one turn of the loop, and drops those that were hung up already.

Who connects waits in the kernel's queue behind all who came before (listen(2)), so that those that
are worth nothing have to go quickly. They are taken in batches and asked about by one poll(2) for a
whole batch, which takes some three microseconds for each. Whose they are is told, so that one who
makes too many can be kept out of the queue (agent.limits.lockout).
"""

from __future__ import annotations

import errno
import os
import select
import socket
from collections import deque
from typing import TYPE_CHECKING

from agent.kernel.credentials import read_user
from agent.signals import UNHEARD, Refused
from agent.telemetry.throttled_log import Rate, ThrottledLog

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence
    from collections.abc import Set as AbstractSet

    from structlog.typing import FilteringBoundLogger

    from agent.signals import Signals

BATCH = 16
# In one turn of the loop, before open connections get theirs, if nobody is there any more.
BATCHES_PER_TURN = 4
# When descriptors run out, accept fails at once, each time; wait for connections to end instead.
DESCRIPTORS_PAUSE = 0.1
# Log lines of each errno of accept(2).
LINES_PER_ERRNO = Rate(1, 10.0)


class Acceptor:
    """Accepts on one listener after `start`, and hands each connection to `admit`, which owns it.

    `admit` may raise OSError where the agent is out of descriptors or memory: then it is taken for
    ended, and others wait a while. `open_connections` tells how many there are, for the log.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        admit: Callable[[socket.socket], None],
        open_connections: Callable[[], int],
        log: FilteringBoundLogger,
        signals: Signals = UNHEARD,
    ) -> None:
        self._loop = loop
        self._admit = admit
        self._open_connections = open_connections
        self._signals = signals
        self._listener: socket.socket | None = None
        self._hung_up: Callable[[int, int], None] = lambda _uid, _times: None
        self._arrived: deque[socket.socket] = deque()
        self._throttled = ThrottledLog(log, LINES_PER_ERRNO, seconds=loop.time)
        self._sample = 0

    @property
    def accepts(self) -> bool:
        """Whether whoever connects now is served."""
        return self._listener is not None

    def start(self, listener: socket.socket, hung_up: Callable[[int, int], None]) -> None:
        """Begin to accept. `hung_up` is told how many connections of which user came to nothing."""
        self._listener, self._hung_up = listener, hung_up
        self._listen(listener)

    def stop(self) -> None:
        """Accept no more. Who was accepted and could not be admitted yet is cut."""
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
        # One stands for all, each time another: there are many where it matters who they are.
        self._sample += 1
        with _wrapped(gone[self._sample % len(gone)]) as sock:
            try:
                uid = read_user(sock)
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
    """The descriptors of so many connections, or of all that there are.

    Raises:
        OSError: there is none, for a reason that lasts (accept(2)).
    """
    descriptors: list[int] = []
    try:
        while len(descriptors) < most:
            # What accept() of Python adds to this costs as much as all the rest.
            descriptors.append(listener._accept()[0])  # type: ignore[attr-defined]  # noqa: SLF001
    except BlockingIOError:
        pass
    except OSError as error:
        if not descriptors and error.errno != errno.ECONNABORTED:
            raise
    return descriptors


def _hung_up(descriptors: Sequence[int]) -> AbstractSet[int]:
    """Those of them at whose other end nobody is any more."""
    asked = select.poll()
    for descriptor in descriptors:
        asked.register(descriptor, 0)  # a hang-up is told of anyway
    return {descriptor for descriptor, _events in asked.poll(0)}


def _wrapped(descriptor: int) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, descriptor)
    sock.settimeout(0)
    return sock
