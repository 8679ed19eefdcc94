"""How often something may happen: a bucket of tokens for each key, refilled as time passes."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

# Keys that are remembered; one that was forgotten begins with a full bucket.
KEYS = 1000


@dataclass(slots=True)
class _Bucket:
    tokens: float
    filled_at: float
    refused: int = 0


class RateLimit:
    """`burst` at once for each key, and one more every `seconds`."""

    def __init__(self, burst: int, seconds: float) -> None:
        self._burst = burst
        self._seconds = seconds
        self._buckets: OrderedDict[object, _Bucket] = OrderedDict()

    def take(self, key: object, now: float) -> int | None:
        """Ask whether it may happen now, in seconds of any clock that only goes forward.

        Returns:
            None if it may not; else how often it was refused since it last happened.
        """
        bucket = self._buckets.setdefault(key, _Bucket(self._burst, now))
        self._buckets.move_to_end(key)
        if len(self._buckets) > KEYS:
            self._buckets.popitem(last=False)
        gained = (now - bucket.filled_at) / self._seconds
        bucket.tokens = min(self._burst, bucket.tokens + gained)
        bucket.filled_at = now
        if bucket.tokens < 1:
            bucket.refused += 1
            return None
        bucket.tokens -= 1
        refused, bucket.refused = bucket.refused, 0
        return refused
