"""Share one piece of work among all callers that wait for its result."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from cachetools import LRUCache

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Hashable
    from concurrent.futures import Executor

K = TypeVar("K", bound="Hashable")
V = TypeVar("V")


class SharedWork(Generic[K, V]):
    """At most one task for each key. It owns the tasks; `close` cancels them.

    The cancellation of one waiter does not stop the task for the others.
    """

    def __init__(self) -> None:
        self._tasks: dict[K, asyncio.Task[V]] = {}

    async def get(self, key: K, work: Callable[[], Coroutine[Any, Any, V]]) -> V:
        """Wait for the task of this key, which starts now if there is none.

        Raises:
            Exception: the exception of the task.
        """
        return await asyncio.shield(self.begin(key, work))

    def begin(self, key: K, work: Callable[[], Coroutine[Any, Any, V]]) -> asyncio.Task[V]:
        """Return the task of this key. Await it through `asyncio.shield` only."""
        task = self._tasks.get(key)
        if task is None:
            task = asyncio.get_running_loop().create_task(work())
            self._tasks[key] = task
            task.add_done_callback(partial(self._done, key))
        return task

    async def close(self) -> None:
        """Cancel all tasks, and with them their waiters."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _done(self, key: K, task: asyncio.Task[V]) -> None:
        del self._tasks[key]
        # Without a read of the exception, asyncio reports it as lost if no waiter is left.
        if not task.cancelled():
            task.exception()


class SlowLookup(Generic[K, V]):
    """A cache of look-ups that run in threads: at most `size` answers, each for `seconds`.

    The cancellation of one waiter does not stop the look-up: the next caller gets its answer.
    """

    def __init__(self, threads: Executor, *, size: int, seconds: float = float("inf")) -> None:
        self._threads = threads
        self._seconds = seconds
        self._kept: LRUCache[K, tuple[float, V]] = LRUCache(size)
        self._searching: dict[K, asyncio.Future[V]] = {}

    async def get(
        self, key: K, begin: Callable[[], Callable[[], V]], until: float, *, keep: bool = True
    ) -> V:
        """Return the answer for this key.

        Without a cached answer and a look-up in progress, it calls `begin` on the event loop's
        thread, and runs the function that `begin` returns in a thread.

        Raises:
            TimeoutError: the answer is not there at this time of the event loop.
            Exception: the exception of one of the two functions.
        """
        kept = self._kept.get(key)
        if kept is not None and kept[0] > time.monotonic():
            return kept[1]
        search = self._searching.get(key)
        if search is None:
            search = asyncio.get_running_loop().run_in_executor(self._threads, begin())
            self._searching[key] = search
            search.add_done_callback(lambda done: self._found(key, done, keep=keep))
        async with asyncio.timeout_at(until):
            return await asyncio.shield(search)

    def forget(self, key: K) -> None:
        """Drop the cached answer for this key."""
        self._kept.pop(key, None)

    def _found(self, key: K, search: asyncio.Future[V], *, keep: bool) -> None:
        del self._searching[key]
        # Without a read of the exception, asyncio reports it as lost if no waiter is left.
        if search.cancelled() or search.exception() is not None or not keep:
            return
        self._kept[key] = (time.monotonic() + self._seconds, search.result())
