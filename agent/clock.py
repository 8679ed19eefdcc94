"""Time as a collaborator, so that no test ever waits for an expiry."""

from __future__ import annotations

import asyncio
import datetime as dt
from typing import Protocol


class Clock(Protocol):
    """What the daemon knows of time."""

    def now(self) -> dt.datetime:
        """The wall clock, timezone-aware, in UTC."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait; a suspended host may make this longer than asked."""
        ...


class SystemClock:
    """The host's clock."""

    def now(self) -> dt.datetime:
        """See Clock.now."""
        return dt.datetime.now(dt.UTC)  # noqa: TID251 - it is the Clock

    async def sleep(self, seconds: float) -> None:
        """See Clock.sleep."""
        await asyncio.sleep(seconds)
