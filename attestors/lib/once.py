"""Work that many wait for and that is done once."""

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
    """One piece of work at a time for each key. It owns the tasks; `close` ends them.

    One who gives up waiting does not stop the work for the others.
    """

    def __init__(self) -> None:
        self._tasks: dict[K, asyncio.Task[V]] = {}

    async def get(self, key: K, work: Callable[[], Coroutine[Any, Any, V]]) -> V:
        """The result of the work under way for `key`, which begins now if there is none.

        Raises:
            whatever the work raises.
        """
        return await asyncio.shield(self.begin(key, work))

    def begin(self, key: K, work: Callable[[], Coroutine[Any, Any, V]]) -> asyncio.Task[V]:
        """See `get`; do not await the task itself, but what shields it."""
        task = self._tasks.get(key)
        if task is None:
            task = asyncio.get_running_loop().create_task(work())
            self._tasks[key] = task
            task.add_done_callback(partial(self._done, key))
        return task

    async def close(self) -> None:
        """End what is under way. Who still waits for it is cancelled."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _done(self, key: K, task: asyncio.Task[V]) -> None:
        del self._tasks[key]
        # Looking at the exception tells asyncio that it was seen, should nobody wait any more.
        if not task.cancelled():
            task.exception()


class SlowLookup(Generic[K, V]):
    """Keeps at most `size` answers, each for `seconds`; the least recently used goes first.

    One who gives up waiting does not stop the search: the next to ask finds its answer.
    """

    def __init__(self, threads: Executor, *, size: int, seconds: float = float("inf")) -> None:
        self._threads = threads
        self._seconds = seconds
        self._kept: LRUCache[K, tuple[float, V]] = LRUCache(size)
        self._searching: dict[K, asyncio.Future[V]] = {}

    async def get(
        self, key: K, begin: Callable[[], Callable[[], V]], until: float, *, keep: bool = True
    ) -> V:
        """The answer for `key`, if it is there by this moment of the loop's time.

        If nobody knows it or is looking for it, `begin` is called here and now, and what it returns
        is run in a thread. So `begin` may take what must be taken on the event loop's thread.

        Raises:
            TimeoutError: it is not.
            whatever those two raise.
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
        """Drop what is known of `key`, so that the next to ask finds out anew."""
        self._kept.pop(key, None)

    def _found(self, key: K, search: asyncio.Future[V], *, keep: bool) -> None:
        del self._searching[key]
        # Reading the exception also tells asyncio that it was seen, should nobody wait any more.
        if search.cancelled() or search.exception() is not None or not keep:
            return
        self._kept[key] = (time.monotonic() + self._seconds, search.result())
