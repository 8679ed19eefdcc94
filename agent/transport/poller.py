"""One epoll instance for the sockets and pidfds of all connections (epoll(7)).

The event loop watches the descriptor of the instance alone: to register a descriptor here costs a
third of what the loop's own add_reader and remove_reader cost.
"""

from __future__ import annotations

import select
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

READABLE, WRITABLE, HUNG_UP = select.EPOLLIN, select.EPOLLOUT, select.EPOLLHUP

# Events of one turn of the event loop. Then it accepts connections and serves waiting lanes.
EVENTS_PER_TURN = 64


class Poller:
    """Calls back when a registered descriptor is ready, level-triggered. It owns the epoll.

    A callback gets the events. An event may be out of date: another callback of the same turn may
    have forgotten the descriptor, and its number may belong to another file by then. Every callback
    must therefore bear a call without cause.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, events_per_turn: int = EVENTS_PER_TURN
    ) -> None:
        self._loop = loop
        self._events_per_turn = events_per_turn
        self._callbacks: dict[int, Callable[[int], None]] = {}
        self._epoll = select.epoll()
        loop.add_reader(self._epoll.fileno(), self._dispatch)

    def __len__(self) -> int:
        """The number of registered descriptors."""
        return len(self._callbacks)

    def register(self, descriptor: int, callback: Callable[[int], None], events: int) -> None:
        """Watch a descriptor. HUNG_UP and errors are reported whatever `events` asks for.

        Raises:
            OSError: the kernel is out of memory or of watches (epoll_ctl(2)).
        """
        self._epoll.register(descriptor, events)
        self._callbacks[descriptor] = callback

    def modify(self, descriptor: int, events: int) -> None:
        """Watch a registered descriptor for other events."""
        self._epoll.modify(descriptor, events)

    def forget(self, descriptor: int) -> None:
        """Watch a descriptor no more; call it before close(2). A second call has no effect.

        The kernel forgets a closed file by itself only when no copy of it is open, and a process
        that the agent is starting holds copies of all.
        """
        if self._callbacks.pop(descriptor, None) is not None:
            self._epoll.unregister(descriptor)

    def close(self) -> None:
        """Forget all descriptors."""
        if not self._epoll.closed:
            self._callbacks.clear()
            self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()

    def _dispatch(self) -> None:
        callbacks = self._callbacks
        for descriptor, events in self._epoll.poll(0, self._events_per_turn):
            callback = callbacks.get(descriptor)
            if callback is not None:
                callback(events)
