"""Due moments, one for each key, ordered by time.

A dict holds the moments and a heap orders them. The heap may hold outdated pairs; they are skipped
when they come up, and the heap is rebuilt from the dict when most of it is outdated. Rebuilding
therefore never loses a moment.
"""

from __future__ import annotations

import heapq
from itertools import count
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable
    from datetime import datetime

K = TypeVar("K", bound="Hashable")

# This many outdated pairs are no reason to rebuild the heap.
SLACK = 16


class Schedule(Generic[K]):
    """One due moment for each key."""

    def __init__(self) -> None:
        self._moments: dict[K, datetime] = {}
        # The number keeps the heap from comparing keys.
        self._heap: list[tuple[datetime, int, K]] = []
        self._number = count()

    def __len__(self) -> int:
        """How many keys have a moment."""
        return len(self._moments)

    def __contains__(self, key: K) -> bool:
        return key in self._moments

    @property
    def heap_size(self) -> int:
        """How many pairs are in memory, outdated ones included."""
        return len(self._heap)

    def set(self, key: K, moment: datetime) -> None:
        """Replace the moment of a key."""
        self._moments[key] = moment
        heapq.heappush(self._heap, (moment, next(self._number), key))
        if len(self._heap) > 2 * len(self._moments) + SLACK:
            self._rebuild()

    def set_no_later(self, key: K, moment: datetime) -> None:
        """Bring the moment of a key forward, or give it its first one."""
        if key not in self._moments or moment < self._moments[key]:
            self.set(key, moment)

    def cancel(self, key: K) -> None:
        """Remove the moment of a key, if it has one."""
        self._moments.pop(key, None)

    def pop_due(self, now: datetime) -> K | None:
        """Remove and return the key whose moment came first; None if no moment has come."""
        while self._heap and self._heap[0][0] <= now:
            moment, _, key = heapq.heappop(self._heap)
            if self._moments.get(key) == moment:
                del self._moments[key]
                return key
        return None

    def reset(self, moment_of: Callable[[K], datetime]) -> None:
        """Give each key the moment that `moment_of` returns."""
        self._moments = {key: moment_of(key) for key in self._moments}
        self._rebuild()

    def _rebuild(self) -> None:
        self._heap = [(at, next(self._number), key) for key, at in self._moments.items()]
        heapq.heapify(self._heap)
