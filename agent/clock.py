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
        """Wait at least so long; a suspended host makes the wait longer."""
        ...


class SystemClock:
    """The host's clock."""

    def now(self) -> dt.datetime:
        """See Clock.now."""
        return dt.datetime.now(dt.UTC)  # noqa: TID251 - it is the Clock

    async def sleep(self, seconds: float) -> None:
        """See Clock.sleep."""
        await asyncio.sleep(seconds)
