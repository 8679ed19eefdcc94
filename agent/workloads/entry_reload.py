"""The entries in force, and how changed files replace them: all at once, or not at all.

What cannot be loaded changes nothing: the last good set stays in force, and every mistake is told.
Streams whose callers match something else now are told to find out; no other stream is.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.errors import ConfigError
from agent.telemetry.throttled_log import ThrottledLog

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from structlog.typing import FilteringBoundLogger

    from agent.clock import Clock
    from agent.entries.schema import LoadedEntries
    from agent.errors import Problem
    from agent.telemetry.metrics import Metrics
    from agent.workloads.entitlement import Entitlements
    from agent.workloads.streams import OpenStream, Streams

# Of a file in which everything is wrong, so many mistakes go to the log; `vouchd check` has all.
LOGGED_PROBLEMS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ReloadStatus:
    """What came of the files. `problems` are why those on the disk now are not in force."""

    entries: int
    loaded_at: datetime
    tried_at: datetime
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True, slots=True)
class Audience:
    """Whom new entries concern."""

    streams: Streams
    metrics: Metrics


class EntryReloader:
    """Loads the entry files again. `load` may take seconds, and is called in a thread."""

    def __init__(
        self,
        load: Callable[[], LoadedEntries],
        entitlements: Entitlements,
        audience: Audience,
        clock: Clock,
        log: FilteringBoundLogger,
    ) -> None:
        self._load = load
        self._entitlements = entitlements
        self._streams = audience.streams
        self._metrics = audience.metrics
        self._clock = clock
        self._log = log
        self._throttled = ThrottledLog(log)
        self._reloading = asyncio.Lock()
        count = len(entitlements.entries.entries)
        self.status = ReloadStatus(entries=count, loaded_at=clock.now(), tried_at=clock.now())
        self._show_in_metrics()

    async def reload(self) -> None:
        """Put the files in force as they are now, if they are in order."""
        async with self._reloading:
            try:
                loaded = await asyncio.to_thread(self._load)
            except ConfigError as error:
                self._refuse(error.problems)
            except Exception:  # noqa: BLE001 - one defect must not end what follows the files
                self._throttled.exception("internal error", None, where="reload")
                self._metrics.reloads.labels("internal_error").inc()
            else:
                self._replace(loaded)
            self._show_in_metrics()

    def _refuse(self, problems: tuple[Problem, ...]) -> None:
        self.status = ReloadStatus(
            entries=self.status.entries,
            loaded_at=self.status.loaded_at,
            tried_at=self._clock.now(),
            problems=problems,
        )
        self._metrics.reloads.labels("refused").inc()
        for problem in problems[:LOGGED_PROBLEMS]:
            self._log.error(
                "entries not reloaded, the last good ones stay in force", problem=str(problem)
            )
        if len(problems) > LOGGED_PROBLEMS:
            self._log.error("more mistakes: vouchd check lists them all", count=len(problems))

    def _replace(self, loaded: LoadedEntries) -> None:
        now = self._clock.now()
        self._entitlements.entries = loaded.entries
        told = self._streams.wake(self._concerns)
        count = len(loaded.entries.entries)
        self.status = ReloadStatus(entries=count, loaded_at=now, tried_at=now)
        self._metrics.reloads.labels("loaded").inc()
        for warning in loaded.warnings[:LOGGED_PROBLEMS]:
            self._log.warning("entry is doubtful", problem=str(warning))
        self._log.info("entries reloaded", entries=count, streams_concerned=told)

    def _concerns(self, stream: OpenStream) -> bool:
        """Whether the caller of a stream matches something else than it was served."""
        served = stream.entitlement
        if served is None or served.attestation is None:
            return False  # it is just being attested, and will be matched with the new ones
        matches = self._entitlements.matches(stream.caller, served.attestation)
        return matches.identities != served.identities

    def _show_in_metrics(self) -> None:
        self._metrics.entries.set(self.status.entries)
        self._metrics.entries_valid.set(not self.status.problems)
        self._metrics.entries_loaded_at.set(self.status.loaded_at.timestamp())
