"""Reload of the entry files: the new entries replace the old ones as a whole, or not at all.

Files with a mistake change nothing: the last good entries stay in force, and the log has every
mistake. Streams whose callers match other identities than before are woken; no other stream is.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from agent.config.daemon_thread import run_in_daemon_thread
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

# A file may hold a mistake in each of 100,000 lines; `vouchd check` lists them all.
LOGGED_PROBLEMS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ReloadStatus:
    """The entries in force. `problems` are why the files as they are now are not in force."""

    entries: int
    loaded_at: datetime
    tried_at: datetime
    problems: tuple[Problem, ...] = ()


class EntryReloader:
    """Loads the entry files again. `load` may take seconds, and runs in a thread."""

    def __init__(
        self,
        load: Callable[[], LoadedEntries],
        entitlements: Entitlements,
        streams: Streams,
        metrics: Metrics,
        clock: Clock,
        log: FilteringBoundLogger,
    ) -> None:
        self._load = load
        self._entitlements = entitlements
        self._streams = streams
        self._metrics = metrics
        self._clock = clock
        self._log = log
        self._throttled = ThrottledLog(log)
        self._reloading = asyncio.Lock()
        count = len(entitlements.entries.entries)
        self.status = ReloadStatus(entries=count, loaded_at=clock.now(), tried_at=clock.now())
        self._show_in_metrics()

    async def reload(self) -> None:
        """Load the files as they are now, and replace the entries unless there is a mistake."""
        async with self._reloading:
            try:
                loaded = await run_in_daemon_thread(self._load, warn=self._warn)
            except ConfigError as error:
                self._refuse(error.problems)
            except Exception:  # noqa: BLE001 - a defect of the loader must not end the watch
                self._throttled.exception("internal error", None, where="reload")
                self._metrics.entries_reloaded("internal_error")
            else:
                self._replace(loaded)
            self._show_in_metrics()

    def _warn(self) -> None:
        self._log.warning("entries not reloaded yet", reason="loading the files takes long")

    def _refuse(self, problems: tuple[Problem, ...]) -> None:
        self.status = replace(self.status, tried_at=self._clock.now(), problems=problems)
        self._metrics.entries_reloaded("refused")
        for problem in problems[:LOGGED_PROBLEMS]:
            self._log.error(
                "entries not reloaded",
                problem=str(problem),
                advice="the last good entries stay in force",
            )
        if len(problems) > LOGGED_PROBLEMS:
            self._log.error(
                "entries not reloaded",
                count=len(problems),
                advice="vouchd check lists every mistake",
            )

    def _replace(self, loaded: LoadedEntries) -> None:
        now = self._clock.now()
        self._entitlements.entries = loaded.entries
        woken = self._streams.wake(self._concerns)
        count = len(loaded.entries.entries)
        self.status = ReloadStatus(entries=count, loaded_at=now, tried_at=now)
        self._metrics.entries_reloaded("loaded")
        for warning in loaded.warnings[:LOGGED_PROBLEMS]:
            self._log.warning("entry has a warning", problem=str(warning))
        self._log.info("entries reloaded", entries=count, streams=woken)

    def _concerns(self, stream: OpenStream) -> bool:
        """Return whether the caller of a stream matches other identities than it was served."""
        shown = stream.entitlement
        if shown is None:
            return True  # its first attestation may have matched the old entries already
        if shown.attestation is None:
            return False  # a verifier without an identity: it gets bundles whatever the entries
        matches = self._entitlements.matches(stream.caller, shown.attestation)
        return matches.identities != shown.identities

    def _show_in_metrics(self) -> None:
        self._metrics.entries.set(self.status.entries)
        self._metrics.entries_valid.set(not self.status.problems)
        self._metrics.entries_loaded_at.set(self.status.loaded_at.timestamp())
