"""The settings in force, and what SIGHUP changes of them.

What can change while the agent runs is taken up as a whole, after all of the file was found to be
in order. What cannot is named in the log, and stays as it is until a restart.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.config.watch import RETRY_SECONDS
from agent.errors import ConfigError, VouchdError
from agent.telemetry.throttled_log import ThrottledLog

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from structlog.typing import FilteringBoundLogger

    from agent.config.settings import Settings
    from agent.config.watch import FileWatch
    from agent.telemetry.metrics import Metrics

# Everything else is built into sockets, keys and attestors that are there since the start.
CHANGEABLE = frozenset(
    {
        "entries",
        "require_proof",
        "reattest_interval",
        "allow_unauthenticated_verifiers",
        "authority",
        "log",
    }
)


@dataclass(slots=True)
class CurrentSettings:
    """Holds the settings that are in force."""

    settings: Settings


class SettingsReloader:
    """Takes up changed settings, and then the entries, be they changed or not.

    `apply` hands new settings to those who live by them; `metrics` shows what came of it.
    """

    def __init__(
        self,
        in_force: CurrentSettings,
        reread: Callable[[], Settings],
        apply: Callable[[Settings], Awaitable[None]],
        metrics: Metrics,
        log: FilteringBoundLogger,
    ) -> None:
        self._metrics = metrics
        self._in_force = in_force
        self._reread = reread
        self._apply = apply
        self._log = log
        self.failure = ""
        """Why what the file says now is not in force."""

    async def reload(self) -> None:
        """Read the file again, and take up what can change."""
        self.failure = ""
        try:
            await self._take_up(await asyncio.to_thread(self._reread))
        except VouchdError as error:
            self.failure = str(error).partition("\n")[0]
            self._metrics.settings_reloaded(valid=False)
            self._log_failure(error)
        else:
            self._metrics.settings_reloaded(valid=True)

    async def _take_up(self, wanted: Settings) -> None:
        current = self._in_force.settings
        changed = {name for name in type(wanted).model_fields if _differs(name, wanted, current)}
        for name in sorted(changed - CHANGEABLE):
            self._log.warning("setting needs a restart to change", setting=name)
        taken_up = {name: getattr(wanted, name) for name in changed & CHANGEABLE}
        settings = current.model_copy(update=taken_up)
        await self._apply(settings)
        self._in_force.settings = settings
        self._log.info("settings reloaded", changed=sorted(taken_up))

    def _log_failure(self, error: VouchdError) -> None:
        if not isinstance(error, ConfigError):
            self._log.error("settings not reloaded", reason=str(error))
            return
        for problem in error.problems:
            self._log.error("settings not reloaded", problem=str(problem))


def _differs(name: str, one: Settings, other: Settings) -> bool:
    return bool(getattr(one, name) != getattr(other, name))


async def follow(
    hang_up: asyncio.Event,
    watches: Iterator[FileWatch],
    reload_entries: Callable[[], Awaitable[None]],
    reload_all: Callable[[], Awaitable[None]],
    log: FilteringBoundLogger,
) -> None:
    """Reload the entries when their files change, and everything at each `hang_up`, for ever.

    Each hang-up takes the next of the watches, because the entries may be in other files then.
    """
    for watch in watches:
        async with asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(_watch(watch, reload_entries, log))
            await hang_up.wait()
            hang_up.clear()
            watching.cancel()
        await reload_all()


async def _watch(
    watch: FileWatch, reload_entries: Callable[[], Awaitable[None]], log: FilteringBoundLogger
) -> None:
    throttled = ThrottledLog(log)
    while True:
        try:
            async with aclosing(watch.changes()) as changes:
                async for _ in changes:
                    await reload_entries()
        except Exception:  # noqa: BLE001 - a defect here must not end the agent
            throttled.exception("internal error", None, where="entry watch")
            await asyncio.sleep(RETRY_SECONDS)
