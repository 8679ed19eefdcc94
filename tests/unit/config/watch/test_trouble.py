"""A watch goes on where inotify fails, and a hung file system delays reports alone."""

import asyncio
import os
import resource
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import structlog
from structlog.testing import capture_logs

from agent.config.inotify import Directories
from agent.config.watch import FileWatch
from agent.config.watched_paths import View, look
from tests.support.agent import SAFETY_SECONDS
from tests.unit.config.watch.conftest import (
    INOTIFY_ONLY,
    CountedLooks,
    following,
    replace_file,
    rest,
    until,
)


@contextmanager
def _no_more_descriptors() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + 1, before[1]))  # one, to list directories
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


async def test_watch_without_descriptors_warns_once_and_finds_changes_by_looking(
    entries: Path,
) -> None:
    looks, times = CountedLooks(), replace(INOTIFY_ONLY, retry=0.1)
    with capture_logs() as logs, _no_more_descriptors():
        async with following(entries, times=times, look=looks.look) as reports:
            await until(lambda: looks.count >= 3)
            assert reports.count == 0
            (entries / "a.yaml").write_text("2")
            await reports.after(0)
    [warning] = [line for line in logs if line["event"] == "entry files cannot be watched"]
    assert "too many open files" in warning["reason"]
    assert warning["advice"] == "the agent looks every 0.1 s; SIGHUP reloads at once"


async def test_directory_that_goes_between_look_and_watch_causes_no_warning(entries: Path) -> None:
    removals = [entries]

    def look_then_remove(paths: Sequence[Path]) -> View:
        view = look(paths)
        if removals:
            shutil.rmtree(removals.pop())
        return view

    times = replace(INOTIFY_ONLY, replacement=0)
    with capture_logs() as logs:
        async with following(entries, times=times, look=look_then_remove) as reports:
            await reports.after(0)
            await rest()
            entries.mkdir()
            await reports.after(1)
    assert "entry files cannot be watched" not in {line["event"] for line in logs}


async def test_warning_names_the_limit_of_watches_and_not_a_full_disk(
    entries: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Directories, "follow", refuse)
    with capture_logs() as logs:
        async with following(entries):
            await rest()
    [warning] = [line for line in logs if line["event"] == "entry files cannot be watched"]
    assert "fs.inotify.max_user_watches" in warning["reason"]


class PausedView(View):
    """A view whose events wait, so that the kernel's queue fills up."""

    go_on = threading.Event()

    def concerns(self, directory: Path, name: str) -> bool:
        assert self.go_on.wait(SAFETY_SECONDS)
        return super().concerns(directory, name)


async def test_change_amid_lost_events_is_reported(entries: Path) -> None:
    most = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    others = [entries / "one.txt", entries / "two.txt"]
    for other in others:
        other.touch()

    def look_paused(paths: Sequence[Path]) -> View:
        view = look(paths)
        return PausedView(view.directories, view.listed, view.names, view.files)

    async with following(entries, look=look_paused) as reports:
        await rest()
        PausedView.go_on.clear()
        others[0].touch()
        await rest()
        for number in range(most + 2):  # alternately, or the kernel merges equal events
            others[number % 2].touch()
        replace_file(entries / "a.yaml", "2")
        PausedView.go_on.set()
        await reports.after(0)


async def test_defect_of_the_thread_reaches_the_reader_and_the_watch_can_restart(
    entries: Path,
) -> None:
    errors = [ZeroDivisionError()]

    def fail_once(paths: Sequence[Path]) -> View:
        if errors:
            raise errors.pop()
        return look(paths)

    watch = FileWatch([entries], structlog.get_logger(), INOTIFY_ONLY, fail_once)
    with pytest.raises(ZeroDivisionError):
        await anext(watch.changes())
    changes = watch.changes()
    await anext(changes)
    await changes.aclose()


class HungFileSystem:
    """Blocks each look at its files, until it answers."""

    def __init__(self) -> None:
        self.answers = threading.Event()
        self.asked = threading.Event()

    def look(self, paths: Sequence[Path]) -> View:
        self.asked.set()
        assert self.answers.wait(SAFETY_SECONDS)
        return look(paths)


@pytest.fixture
def hung() -> Iterator[HungFileSystem]:
    found = HungFileSystem()
    yield found
    found.answers.set()


async def test_hung_file_system_blocks_no_other_coroutine_and_is_logged_once(
    entries: Path, hung: HungFileSystem
) -> None:
    hung.answers.set()
    times = replace(INOTIFY_ONLY, warn=0.05)
    with capture_logs() as logs:
        async with following(entries, times=times, look=hung.look) as reports:
            await rest()
            hung.answers.clear()
            (entries / "a.yaml").write_text("2")
            await until(lambda: logs)  # the loop runs on
            await rest()  # longer than `warn`
            assert reports.count == 0
            hung.answers.set()
            await reports.after(0)
    [warning] = [line for line in logs if line["event"] == "entries not reloaded yet"]
    assert warning["reason"] == f"{entries}: the file system does not answer"


async def test_watch_of_a_hung_file_system_can_be_closed(
    entries: Path, hung: HungFileSystem
) -> None:
    watch = FileWatch([entries], structlog.get_logger(), INOTIFY_ONLY, hung.look)
    async with asyncio.timeout(SAFETY_SECONDS), asyncio.TaskGroup() as tasks:
        task = tasks.create_task(watch.start())
        await asyncio.to_thread(hung.asked.wait)
        task.cancel()
    watch.close()
