"""Reload: every edit takes effect, and no failure ends the agent."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import cast

import pytest

from agent.config.settings import Settings
from agent.config.watch import FileWatch
from agent.errors import ConfigError, Problem, StartupError, VouchdError
from agent.service.reload import CurrentSettings, ReloadLoop, SettingsReloader
from agent.telemetry.metrics import Metrics
from tests.support.agent import SAFETY_SECONDS
from tests.support.fakes import FakeLog, settle, wait_for_loop
from tests.support.scrape import series
from tests.support.settings import settings


class Files:
    """Entry files: a version on disk, the one in force, and watches that compare them."""

    def __init__(self, *, reload_seconds: float = 60.0) -> None:
        self.reload_seconds = reload_seconds
        self.lines = FakeLog()
        self.version = self.in_force = 0
        self.while_loading: Callable[[], None] = lambda: None
        self.broken_watches = 0
        self.answers = asyncio.Event()
        self.answers.set()
        self.watches: list[Watch] = []
        self.events: list[str] = []
        self.changed = asyncio.Event()
        self.hang_up = asyncio.Event()
        self.reload_settings: Callable[[], Awaitable[None]] = self.load_settings

    def edit(self) -> None:
        self.version += 1
        self.changed.set()

    def watch(self) -> FileWatch:
        self.events.append("watch")
        self.watches.append(Watch(self, broken=len(self.watches) < self.broken_watches))
        return cast("FileWatch", self.watches[-1])

    async def load(self) -> None:
        """Read the files, as a thread does that takes a while."""
        await self.answers.wait()
        self.events.append("load")
        version = self.version
        await asyncio.sleep(0)
        self.while_loading()
        await asyncio.sleep(0)
        self.in_force = version

    async def load_settings(self) -> None:
        self.events.append("settings")

    def loop(self) -> ReloadLoop:
        return ReloadLoop(
            self.watch,
            self.reload_settings,
            self.load,
            self.lines.log,
            retry_seconds=0.0,
            reload_seconds=self.reload_seconds,
        )


class Watch:
    """Reports a version that differs from the one at its start, as FileWatch does."""

    def __init__(self, files: Files, *, broken: bool) -> None:
        self._files = files
        self._seen = -1
        self._broken = broken
        self.is_closed = False

    async def start(self) -> None:
        self._seen = self._files.version

    def close(self) -> None:
        self.is_closed = True

    async def changes(self) -> AsyncGenerator[None, None]:
        if self._broken:
            self._broken, self._seen = False, -1
            raise ZeroDivisionError
        while True:
            if self._files.version != self._seen:
                self._seen = self._files.version
                yield
            self._files.changed.clear()
            await self._files.changed.wait()


async def while_running(files: Files, scenario: Callable[[], Awaitable[None]]) -> None:
    async with asyncio.timeout(SAFETY_SECONDS), asyncio.TaskGroup() as tasks:
        watch = files.watch()
        await watch.start()
        running = tasks.create_task(files.loop().run(files.hang_up, watch))
        await settle()
        await scenario()
        await settle()
        running.cancel()


async def test_an_edit_takes_effect() -> None:
    files = Files()

    async def scenario() -> None:
        files.edit()

    await while_running(files, scenario)
    assert files.in_force == 1


async def test_an_edit_during_a_reload_by_sighup_takes_effect() -> None:
    files = Files()

    def edit_once() -> None:
        files.while_loading = lambda: None
        files.edit()

    async def scenario() -> None:
        files.while_loading = edit_once
        files.hang_up.set()

    await while_running(files, scenario)
    assert files.version == 1
    assert files.in_force == 1


async def test_sighup_reads_the_settings_before_it_watches_and_loads_their_entries() -> None:
    files = Files()

    async def scenario() -> None:
        files.hang_up.set()

    await while_running(files, scenario)
    assert files.events == ["watch", "settings", "watch", "load"]


async def test_every_watch_but_the_last_is_closed() -> None:
    """A SIGHUP during a reload replaces the new watch before it is followed."""
    files = Files()

    def hang_up_once() -> None:
        files.while_loading = lambda: None
        files.hang_up.set()

    async def scenario() -> None:
        files.while_loading = hang_up_once
        files.hang_up.set()

    await while_running(files, scenario)
    assert len(files.watches) == 3
    assert [watch.is_closed for watch in files.watches[:-1]] == [True, True]


async def test_entries_that_hang_during_a_reload_by_sighup_are_loaded_when_they_answer() -> None:
    files = Files(reload_seconds=0.01)

    async def scenario() -> None:
        files.answers.clear()
        files.hang_up.set()
        while files.events.count("watch") < 3:  # the second one waits too long
            await asyncio.sleep(0.01)
        files.version = 7
        files.answers.set()

    await while_running(files, scenario)
    assert files.in_force == 7


async def test_hung_entry_files_do_not_keep_the_next_sighup_from_being_handled() -> None:
    files = Files(reload_seconds=0.01)

    async def scenario() -> None:
        files.answers.clear()
        for number in (1, 2):
            files.hang_up.set()
            while files.events.count("watch") < 1 + 2 * number:
                await asyncio.sleep(0.01)

    await while_running(files, scenario)
    assert files.events.count("settings") == 2


async def test_a_second_sighup_during_a_reload_reloads_again() -> None:
    files = Files()

    def hang_up_once() -> None:
        files.while_loading = lambda: None
        files.hang_up.set()

    async def scenario() -> None:
        files.while_loading = hang_up_once
        files.hang_up.set()

    await while_running(files, scenario)
    assert files.events.count("settings") == 2


async def test_an_edit_while_the_watch_was_broken_takes_effect() -> None:
    files = Files()
    files.broken_watches = 1
    files.version = 1  # after the watch was made, while it was broken

    async def scenario() -> None:
        """The edit came before."""

    await while_running(files, scenario)
    assert files.in_force == 1
    [line] = files.lines.of("internal error")
    assert line["where"] == "entry watch"


# --- settings -------------------------------------------------------------------------------------


class Site:
    """Settings in force, and those of the file: an exception is raised instead."""

    def __init__(self, *, read_seconds: float = 60.0) -> None:
        self.lines, self.metrics = FakeLog(), Metrics()
        self.while_reading: Callable[[], object] = lambda: None
        self.current = CurrentSettings(settings())
        self.file: Settings | Exception = settings()
        self.applied: list[Settings] = []
        self.reloader = SettingsReloader(
            self.current, self._reread, self._apply, self.metrics, self.lines.log, read_seconds
        )

    def _reread(self) -> Settings:
        self.while_reading()
        if isinstance(self.file, Exception):
            raise self.file
        return self.file

    async def _apply(self, changed: Settings) -> None:
        self.applied.append(changed)


async def test_settings_that_can_change_take_effect_and_the_others_need_a_restart() -> None:
    site = Site()
    site.file = settings(trust_domain="other.test", log={"audit": False})
    await site.reloader.reload()
    assert not site.current.settings.log.audit
    assert site.current.settings.trust_domain.name == "example.org"
    assert site.applied == [site.current.settings]
    assert site.lines.of("setting needs a restart")[0]["setting"] == "trust_domain"
    assert site.lines.of("settings reloaded")[0]["changed"] == ["log"]


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (ConfigError([Problem("agent.yaml", 2, 1, "unknown key")]), "agent.yaml:2:1: unknown key"),
        (StartupError("agent.yaml cannot be read\nmore"), "agent.yaml cannot be read"),
        (KeyError("a plug-in's options"), "internal error (KeyError)"),
    ],
)
async def test_settings_that_cannot_be_read_change_nothing(error: Exception, failure: str) -> None:
    """The options of a plug-in are read by its own code, which may raise anything."""
    site = Site()
    before, site.file = site.current.settings, error
    await site.reloader.reload()
    assert site.current.settings is before
    assert site.reloader.failure == failure
    assert not site.applied
    expected = "settings not reloaded" if isinstance(error, VouchdError) else "internal error"
    assert len(site.lines.of(expected)) == 1
    site.file = settings()
    await site.reloader.reload()
    assert site.reloader.failure == ""


async def test_the_metrics_show_whether_the_settings_are_those_of_the_file() -> None:
    site = Site()

    def valid() -> list[float]:
        return [v for k, v in series(site.metrics.text()).items() if "settings_valid" in k]

    await site.reloader.reload()
    assert valid() == [1]
    site.file = KeyError("a plug-in's options")
    await site.reloader.reload()
    assert valid() == [0]


async def test_the_settings_are_read_off_the_event_loop() -> None:
    site, loop = Site(), asyncio.get_running_loop()
    site.while_reading = lambda: wait_for_loop(loop)
    await site.reloader.reload()
    assert site.reloader.failure == ""
    assert len(site.applied) == 1


async def test_hung_settings_keep_neither_an_edit_nor_the_next_sighup_from_being_handled() -> None:
    site, files, answers = Site(read_seconds=0.01), Files(), threading.Event()
    before = site.current.settings
    site.while_reading = lambda: answers.wait(10)
    files.reload_settings = site.reloader.reload

    async def scenario() -> None:
        for number in (1, 2):
            files.hang_up.set()
            while files.events.count("load") < 2 * number - 1:
                await asyncio.sleep(0.01)
            files.edit()
            while files.in_force < number:
                await asyncio.sleep(0.01)
        assert "does not answer" in site.reloader.failure
        answers.set()
        while site.reloader.failure:
            files.hang_up.set()  # a slow machine may need more than one attempt of 10 ms
            await asyncio.sleep(0.01)

    try:
        await while_running(files, scenario)
    finally:
        answers.set()
    lines = site.lines.of("settings not reloaded")
    assert [(line["reason"], line["advice"]) for line in lines] == 2 * [
        (
            "the file system of agent.yaml does not answer",
            "send SIGHUP again once the file system answers",
        )
    ]
    assert site.applied == [before], "a read that was abandoned applies nothing"
