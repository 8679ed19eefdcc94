"""Log lines that a caller can cause at will, limited in number and counted.

The limits are per event and key (a user, an entry), and for all keys together. The next line that
passes carries `suppressed`, the lines of this event and key left out since the last one, and
`suppressed_in_all`, those left out by the common limit. A field that would be 0 is absent.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

from agent.rate_limit import RateLimit, SharedRateLimit

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from structlog.typing import FilteringBoundLogger


class Rate(NamedTuple):
    """So many lines at once, then one more every `seconds`."""

    at_once: int
    seconds: float


PER_KEY = Rate(5, 10.0)
IN_ALL = Rate(20, 1.0)


class Throttle:
    """The limits: admits a line, and reports how many it did not admit before."""

    def __init__(
        self,
        per_key: Rate = PER_KEY,
        in_all: Rate = IN_ALL,
        seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limit = SharedRateLimit(RateLimit(*per_key), RateLimit(*in_all))
        self._seconds = seconds

    def admit(self, key: object) -> Mapping[str, int] | None:
        """Return the fields to add to this key's line; None if the line must be left out."""
        counts = self._limit.take(key, self._seconds())
        if counts is None:
            return None
        named = {"suppressed": counts.of_key, "suppressed_in_all": counts.in_all}
        return {name: count for name, count in named.items() if count}


class ThrottledLog:
    """A logger with a key for each line: `warning("svid not issued", entry_id, reason=...)`."""

    def __init__(
        self,
        log: FilteringBoundLogger,
        per_key: Rate = PER_KEY,
        in_all: Rate = IN_ALL,
        seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        self._log = log
        self._throttle = Throttle(per_key, in_all, seconds)

    def info(self, event: str, key: object, /, **fields: object) -> None:
        """Write a line at level `info`, unless it is suppressed."""
        self._write(self._log.info, event, key, fields)

    def warning(self, event: str, key: object, /, **fields: object) -> None:
        """Write a line at level `warning`, unless it is suppressed."""
        self._write(self._log.warning, event, key, fields)

    def exception(self, event: str, key: object, /, **fields: object) -> None:
        """Write a line at level `error` with the traceback of the exception being handled."""
        self._write(self._log.exception, event, key, fields)

    def _write(
        self,
        write: Callable[..., object],
        event: str,
        key: object,
        fields: Mapping[str, object],
    ) -> None:
        suppressed = self._throttle.admit((event, key))
        if suppressed is not None:
            write(event, **fields, **suppressed)
