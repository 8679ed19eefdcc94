"""Work that many wait for and that is done once."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Hashable

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
