"""The clock: wall time and sleep behind a Protocol, so that tests replace them with a fake."""

from __future__ import annotations

import asyncio
import datetime as dt
from typing import Protocol


class Clock(Protocol):
    """Wall time and sleep."""

    def now(self) -> dt.datetime:
        """Return the wall time, timezone-aware, in UTC."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait about so long; a suspended host makes the wait longer."""
        ...


# Waits from a second on end together, at eighths of a second of the loop's time: several periodic
# tasks then wake an idle agent once.
_TOGETHER_SECONDS = 0.125
_LONG_SECONDS = 1.0


class SystemClock:
    """The host's clock."""

    def now(self) -> dt.datetime:
        """See Clock.now."""
        return dt.datetime.now(dt.UTC)  # noqa: TID251 - it is the Clock

    async def sleep(self, seconds: float) -> None:
        """See Clock.sleep. A wait of a second or more may end an eighth of a second early."""
        if seconds >= _LONG_SECONDS:
            now = asyncio.get_running_loop().time()
            seconds -= (now + seconds) % _TOGETHER_SECONDS
        await asyncio.sleep(seconds)
