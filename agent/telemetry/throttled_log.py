"""Warnings about entries, which a call, and so anybody, can bring about again and again."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from agent.limits.rate_limit import RateLimit, SharedRateLimit

if TYPE_CHECKING:
    from collections.abc import Callable

    from structlog.typing import FilteringBoundLogger

# Of one kind and entry so many at once, and one more every ten seconds; of all one a second.
ENTRY_AT_ONCE = 5
ENTRY_SECONDS = 10.0
ALL_AT_ONCE = 20
ALL_SECONDS = 1.0


class ThrottledLog:
    """Logs such warnings, and with the next one how many it left out. `seconds` only go forward."""

    def __init__(
        self, log: FilteringBoundLogger, seconds: Callable[[], float] = time.monotonic
    ) -> None:
        self._log = log
        self._seconds = seconds
        self._limit = SharedRateLimit(
            RateLimit(ENTRY_AT_ONCE, ENTRY_SECONDS), RateLimit(ALL_AT_ONCE, ALL_SECONDS)
        )

    def warn(self, event: str, entry: str, error: Exception) -> None:
        """Say it of an entry, unless it has been said often enough."""
        left_out = self._limit.take((event, entry), self._seconds())
        if left_out is not None:
            count = left_out.of_key + left_out.of_all
            more = {"not_logged": count} if count else {}
            self._log.warning(event, entry=entry, reason=str(error), **more)
