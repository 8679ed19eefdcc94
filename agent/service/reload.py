"""Reload: of the settings and the entries at SIGHUP, of the entries when their files change.

Settings that can change while the agent runs take effect together, after the whole file was found
valid. For each of the others the log says that it needs a restart.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.config.daemon_thread import run_in_daemon_thread
from agent.errors import ConfigError, VouchdError
from agent.telemetry.throttled_log import ThrottledLog

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractContextManager
    from typing import NoReturn

    from structlog.typing import FilteringBoundLogger

    from agent.config.settings import Settings
    from agent.config.watch import FileWatch
    from agent.telemetry.metrics import Metrics

# Sockets, keys and attestors are made of the others at the start.
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


# After a defect of a watch.
RETRY_SECONDS = 5.0
# The longest waits of a reload by SIGHUP: for agent.yaml, then for the entry files. A hung file
# system must not keep the next edit or SIGHUP from being handled.
RELOAD_SECONDS = 30.0


@dataclass(slots=True)
class CurrentSettings:
    """The settings in force; a reload replaces them."""

    settings: Settings


class SettingsReloader:
    """Reads the settings again, and applies those that can change.

    Args:
        current: the settings in force.
        reread: reads and validates the file; called in a thread.
        apply: gives new settings to the parts of the agent that use them.
        metrics: shows whether the file was valid.
        log: says what changed, and every mistake.
        read_seconds: how long a reload waits for the file.
    """

    def __init__(
        self,
        current: CurrentSettings,
        reread: Callable[[], Settings],
        apply: Callable[[Settings], Awaitable[None]],
        metrics: Metrics,
        log: FilteringBoundLogger,
        read_seconds: float = RELOAD_SECONDS,
    ) -> None:
        self._metrics = metrics
        self._current = current
        self._reread = reread
        self._apply = apply
        self._log = log
        self._read_seconds = read_seconds
        self.failure = ""
        """Why the settings in the file are not in force; empty if they are."""

    async def reload(self) -> None:
        """Read the file and apply the settings that can change. Failures are logged, never raised.

        A plug-in judges its own options, so anything may be raised here.
        """
        self.failure = ""
        try:
            await self._apply_changes(await self._read())
        except TimeoutError:
            self.failure = "the file system of agent.yaml does not answer"
            advice = "send SIGHUP again once the file system answers"
            self._log.error("settings not reloaded", reason=self.failure, advice=advice)
        except VouchdError as error:
            self.failure = str(error).partition("\n")[0]
            self._log_failure(error)
        except Exception as error:  # noqa: BLE001 - the settings in force stay, and the agent runs on
            self.failure = f"internal error ({type(error).__name__})"
            self._log.exception("internal error", where="reload")
        self._metrics.settings_reloaded(valid=not self.failure)

    async def _read(self) -> Settings:
        """Read the file in a thread; a read that takes too long is abandoned.

        Raises:
            TimeoutError: the file system does not answer.
        """
        async with asyncio.timeout(self._read_seconds):
            return await run_in_daemon_thread(self._reread)

    async def _apply_changes(self, wanted: Settings) -> None:
        current = self._current.settings
        changed = {name for name in type(wanted).model_fields if _differs(name, wanted, current)}
        for name in sorted(changed - CHANGEABLE):
            self._log.warning("setting needs a restart", setting=name)
        changes = {name: getattr(wanted, name) for name in changed & CHANGEABLE}
        settings = current.model_copy(update=changes)
        await self._apply(settings)
        self._current.settings = settings
        self._log.info("settings reloaded", changed=sorted(changes))

    def _log_failure(self, error: VouchdError) -> None:
        if not isinstance(error, ConfigError):
            self._log.error("settings not reloaded", reason=str(error))
            return
        for problem in error.problems:
            self._log.error("settings not reloaded", problem=str(problem))


def _differs(name: str, one: Settings, other: Settings) -> bool:
    return bool(getattr(one, name) != getattr(other, name))


class ReloadLoop:
    """Reloads the entries when their files change, and settings and entries at each SIGHUP.

    Args:
        make_watch: makes a watch of the entry files of the settings in force.
        reload_settings: never raises.
        reload_entries: never raises.
        reloading: entered for the time of a reload by SIGHUP.
        log: says why a watch broke.
        retry_seconds: how long after a watch broke it starts again.
        reload_seconds: how long a reload by SIGHUP waits for the entry files.
    """

    def __init__(
        self,
        make_watch: Callable[[], FileWatch],
        reload_settings: Callable[[], Awaitable[None]],
        reload_entries: Callable[[], Awaitable[None]],
        log: FilteringBoundLogger,
        reloading: Callable[[], AbstractContextManager[None]] = nullcontext,
        retry_seconds: float = RETRY_SECONDS,
        reload_seconds: float = RELOAD_SECONDS,
    ) -> None:
        self._make_watch = make_watch
        self._reload_settings = reload_settings
        self._reload_entries = reload_entries
        self._throttled = ThrottledLog(log)
        self._reloading = reloading
        self._retry_seconds = retry_seconds
        self._reload_seconds = reload_seconds

    async def run(self, hang_up: asyncio.Event, watch: FileWatch) -> NoReturn:
        """Follow `watch`, which was started before the entries were first loaded, until cancelled.

        After each `hang_up` another watch is followed: the entries may be in other files then.
        """
        while True:
            async with asyncio.TaskGroup() as tasks:
                following = tasks.create_task(self._follow(watch))
                await hang_up.wait()
                hang_up.clear()
                following.cancel()
            watch.close()  # a task that is cancelled before it starts does not do it
            with self._reloading():
                await self._reload_settings()
                watch = await self._reload_watched()

    async def _follow(self, watch: FileWatch) -> NoReturn:
        """Reload at each change. A watch that starts again reports at once."""
        while True:
            try:
                async with aclosing(watch.changes()) as changes:
                    async for _ in changes:
                        await self._reload_entries()
            except Exception:  # noqa: BLE001 - a defect of the watch must not end the agent
                self._throttled.exception("internal error", None, where="entry watch")
            await asyncio.sleep(self._retry_seconds)

    async def _reload_watched(self) -> FileWatch:
        """Watch the files, then load them: the watch reports an edit during the load.

        Files that do not answer in time are loaded when the watch reports that they do.
        """
        watch = self._make_watch()
        try:
            async with asyncio.timeout(self._reload_seconds):
                await watch.start()
                await self._reload_entries()
        except Exception as error:  # noqa: BLE001 - a defect of the watch must not end the agent
            if not isinstance(error, TimeoutError):
                self._throttled.exception("internal error", None, where="entry watch")
            watch.close()
            return self._make_watch()
        return watch
