"""Entry files on a real disk, and a reader that counts the reports of a watch."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import structlog

from agent.config.watch import FileWatch
from agent.config.watch_thread import WatchTimes
from agent.config.watched_paths import View, look
from tests.support.agent import SAFETY_SECONDS

NEVER = 1e6
# Reports come from inotify alone: the watch never looks by itself.
INOTIFY_ONLY = WatchTimes(look=NEVER)


class Reports:
    """Counts the reports of a watch, as a reader that reads the files each time."""

    def __init__(
        self,
        *paths: Path,
        times: WatchTimes = INOTIFY_ONLY,
        look: Callable[[Sequence[Path]], View] = look,
    ) -> None:
        self._watch = FileWatch(paths, structlog.get_logger(), times, look)
        self.count = 0
        self._more = asyncio.Event()

    async def start(self) -> None:
        await self._watch.start()

    async def run(self) -> None:
        async for _ in self._watch.changes():
            self.count += 1
            self._more.set()

    async def after(self, count: int) -> None:
        """Wait until there are more than `count`."""
        async with asyncio.timeout(SAFETY_SECONDS):
            while self.count <= count:
                self._more.clear()
                await self._more.wait()


@pytest.fixture(autouse=True)
def _no_thread_left() -> Iterator[None]:
    yield
    for thread in threading.enumerate():
        if thread.name == "entry watch":
            thread.join(SAFETY_SECONDS)
            assert not thread.is_alive()


@asynccontextmanager
async def following(
    *paths: Path,
    times: WatchTimes = INOTIFY_ONLY,
    look: Callable[[Sequence[Path]], View] = look,
) -> AsyncIterator[Reports]:
    reports = Reports(*paths, times=times, look=look)
    await reports.start()
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(reports.run())
        yield reports
        task.cancel()


async def assert_noticed(path: Path, *changes: Callable[[], Any], **times: float) -> None:
    """Each change is reported once, by inotify."""
    async with following(path, times=replace(INOTIFY_ONLY, **times)) as reports:
        for change in changes:
            before = reports.count
            await rest()
            assert reports.count == before, "reported without a change"
            change()
            await reports.after(before)


async def rest() -> None:
    """Let events and reports of the last change pass."""
    await asyncio.sleep(6 * INOTIFY_ONLY.debounce)


async def until(condition: Callable[[], object]) -> None:
    """Run the event loop until the condition holds."""
    async with asyncio.timeout(SAFETY_SECONDS):
        while not condition():
            await asyncio.sleep(0.01)


def replace_file(path: Path, text: str) -> None:
    new = path.with_name(f".{path.name}.new")
    new.write_text(text)
    new.replace(path)


def point(place: Path, target: str | Path) -> None:
    """Make or re-point a symbolic link atomically."""
    new = place.with_name(f"{place.name}_tmp")
    new.symlink_to(target)
    new.replace(place)


class CountedLooks:
    """Counts the looks of a watch at its files."""

    def __init__(self) -> None:
        self.count = 0

    def look(self, paths: Sequence[Path]) -> View:
        self.count += 1
        return look(paths)


@pytest.fixture
def entries(tmp_path: Path) -> Path:
    directory = tmp_path / "entries"
    directory.mkdir()
    (directory / "a.yaml").write_text("1")
    return directory
