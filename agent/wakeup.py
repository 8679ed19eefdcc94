"""A note that something has changed, for the one task that waits for it or for a moment."""

from __future__ import annotations

import asyncio


class Wakeup:
    """As `asyncio.Event`, for one who waits at a time, and who may wait until a moment.

    Each open stream has one and waits nearly always: an Event under `asyncio.timeout` takes three
    times as long, and ends each wait with an exception.
    """

    __slots__ = ("_is_set", "_waiter")

    def __init__(self) -> None:
        self._is_set = False
        self._waiter: asyncio.Future[None] | None = None

    def is_set(self) -> bool:
        """Whether it was set since it was last cleared."""
        return self._is_set

    def set(self) -> None:
        """Wake up who waits, now or the next time."""
        self._is_set = True
        self._release()

    def clear(self) -> None:
        """Wait for what changes from here on."""
        self._is_set = False

    async def wait_until(self, moment: float) -> bool:
        """Return when it is set, or at this moment of the loop's time; whether it is set."""
        if not self._is_set:
            loop = asyncio.get_running_loop()
            self._waiter = loop.create_future()
            timer = loop.call_at(moment, self._release)
            try:
                await self._waiter
            finally:
                timer.cancel()
                self._waiter = None
        return self._is_set

    def _release(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
