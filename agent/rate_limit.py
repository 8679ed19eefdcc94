"""Token buckets, and rate limits per key made of them.

Times are in seconds of a clock that only goes forward.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cachetools import LRUCache

# Keys that are remembered; a forgotten key starts with a full bucket. More users or cgroups than
# this push each other out: the limit of all keys together bounds them.
KEYS = 4096


@dataclass(slots=True, kw_only=True, eq=False, weakref_slot=True)
class Bucket:
    """A token bucket: holds at most `burst` tokens, gains `rate` per second, may go into debt."""

    burst: float
    rate: float
    _full_at: float = field(init=False, default=float("-inf"))

    def tokens(self, now: float) -> float:
        """Return the number of tokens; negative while the bucket is in debt."""
        return self.burst - max(0.0, self._full_at - now) * self.rate

    def charge(self, cost: float, now: float) -> None:
        """Take `cost` tokens, into debt if necessary."""
        self._full_at = max(self._full_at, now) + cost / self.rate

    def seconds_until(self, tokens: float, now: float) -> float:
        """Return the seconds until the bucket holds `tokens`; 0 if it does now."""
        return max(0.0, self._full_at - now - (self.burst - tokens) / self.rate)


@dataclass(slots=True)
class _Allowance:
    bucket: Bucket
    refused: int = 0


class RateLimit:
    """A limit per key: `burst` at once, then one more every `seconds`."""

    def __init__(self, burst: int, seconds: float) -> None:
        self._burst = burst
        self._rate = 1 / seconds
        self._allowances: LRUCache[object, _Allowance] = LRUCache(KEYS)

    def take(self, key: object, now: float) -> int | None:
        """Take one for this key.

        Returns:
            None if the limit is reached; else the number of refusals since the last success.
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
class Suppressed:
    """The number of refusals since the last success."""

    of_key: int
    """Refused by the limit of this key."""
    in_all: int
    """Refused by the limit of all keys together, whichever key asked."""


class SharedRateLimit:
    """A limit per key below a limit of all keys together."""

    def __init__(self, of_key: RateLimit, in_all: RateLimit) -> None:
        self._of_key = of_key
        self._in_all = in_all
        self._carried = 0
        """Refusals of keys that the limit of all refused too; the next success reports them."""

    def take(self, key: object, now: float) -> Suppressed | None:
        """Take one for this key, and one of all; None if either limit is reached."""
        of_key = self._of_key.take(key, now)
        if of_key is None:
            return None
        in_all = self._in_all.take(None, now)
        if in_all is None:
            self._carried += of_key
            return None
        in_all += self._carried
        self._carried = 0
        return Suppressed(of_key, in_all)
