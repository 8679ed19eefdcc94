"""How often something may happen: buckets of tokens, refilled as time passes.

Time is in seconds of any clock that only goes forward.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cachetools import LRUCache

# Keys that are remembered; one that was forgotten begins anew. Whoever can have so many users or
# cgroups that they push each other out is bounded by what all together may have.
KEYS = 4096


@dataclass(slots=True, kw_only=True, eq=False, weakref_slot=True)
class Bucket:
    """`burst` tokens at once, and `rate` more a second. It may get into debt."""

    burst: float
    rate: float
    _full_at: float = field(init=False, default=float("-inf"))

    def tokens(self, now: float) -> float:
        """What is in it."""
        return self.burst - max(0.0, self._full_at - now) * self.rate

    def charge(self, cost: float, now: float) -> None:
        """Take so many out, whether they are there or not."""
        self._full_at = max(self._full_at, now) + cost / self.rate

    def seconds_until(self, tokens: float, now: float) -> float:
        """How long until there are so many; 0 if there are."""
        return max(0.0, self._full_at - now - (self.burst - tokens) / self.rate)


@dataclass(slots=True)
class _Allowance:
    bucket: Bucket
    refused: int = 0


class RateLimit:
    """`burst` at once for each key, and one more every `seconds`."""

    def __init__(self, burst: int, seconds: float) -> None:
        self._burst = burst
        self._rate = 1 / seconds
        self._allowances: LRUCache[object, _Allowance] = LRUCache(KEYS)

    def take(self, key: object, now: float) -> int | None:
        """Ask whether it may happen now.

        Returns:
            None if it may not; else how often it was refused since it last happened.
        """
        allowance = self._allowances.get(key)
        if allowance is None:
            allowance = _Allowance(Bucket(burst=self._burst, rate=self._rate))
            self._allowances[key] = allowance
        if allowance.bucket.tokens(now) < 1:
            allowance.refused += 1
            return None
        allowance.bucket.charge(1, now)
        refused, allowance.refused = allowance.refused, 0
        return refused


@dataclass(frozen=True, slots=True)
class LeftOut:
    """How often something was refused since it last happened."""

    of_key: int
    of_all: int
    """For want of what all keys together may have."""


class SharedRateLimit:
    """A limit of each key, within one of all keys together."""

    def __init__(self, of_key: RateLimit, of_all: RateLimit) -> None:
        self._of_key = of_key
        self._of_all = of_all
        self._lost = 0

    def take(self, key: object, now: float) -> LeftOut | None:
        """Ask whether it may happen now; None if it may not."""
        of_key = self._of_key.take(key, now)
        if of_key is None:
            return None
        of_all = self._of_all.take(None, now)
        if of_all is None:
            self._lost += of_key
            return None
        of_all += self._lost
        self._lost = 0
        return LeftOut(of_key, of_all)
