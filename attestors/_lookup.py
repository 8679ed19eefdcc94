"""Answers that block: found in a thread, once for all who ask meanwhile, and kept a while."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable
    from concurrent.futures import Executor

K = TypeVar("K", bound="Hashable")
V = TypeVar("V")


class SlowLookup(Generic[K, V]):
    """Keeps at most `size` answers, each for `seconds`; the least recently used goes first.

    One who gives up waiting does not stop the search: the next to ask finds its answer.
    """

    def __init__(self, threads: Executor, *, size: int, seconds: float = float("inf")) -> None:
        self._threads = threads
        self._size = size
        self._seconds = seconds
        self._kept: OrderedDict[K, tuple[float, V]] = OrderedDict()
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
            self._kept.move_to_end(key)
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
        self._kept.move_to_end(key)
        if len(self._kept) > self._size:
            self._kept.popitem(last=False)
