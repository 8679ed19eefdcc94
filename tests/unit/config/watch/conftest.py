"""Files on a real disk, and who reads them whenever a watch says so."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

import pytest
import structlog

from agent.config import watch
from agent.config.watch import FileWatch

LONG = 2.0


class Reports:
    """Counts what a watch reports, as somebody would who reads the files each time."""

    def __init__(self, *paths: Path) -> None:
        self._watch = FileWatch(paths, structlog.get_logger())
        self.count = 0
        self._more = asyncio.Event()

    async def run(self) -> None:
        async for _ in self._watch.changes():
            self.count += 1
            self._more.set()

    async def after(self, count: int) -> None:
        """Wait until there are more than `count`."""
        while self.count <= count:
            self._more.clear()
            async with asyncio.timeout(LONG):
                await self._more.wait()


@asynccontextmanager
async def following(*paths: Path) -> AsyncIterator[Reports]:
    reports = Reports(*paths)
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(reports.run())
        await asyncio.sleep(0)
        yield reports
        task.cancel()


async def assert_noticed(path: Path, *changes: Callable[[], Any]) -> None:
    """Each change is reported soon, which no glance would do."""
    async with following(path) as reports:
        for change in changes:
            before = reports.count
            await rest()
            assert reports.count == before, "reported without a change"
            started = perf_counter()
            change()
            await reports.after(before)
            assert perf_counter() - started < watch.GLANCE_SECONDS / 2


async def rest() -> None:
    """Let what belongs to the last change pass."""
    await asyncio.sleep(5 * watch.STEP_SECONDS)


def replace_file(path: Path, text: str) -> None:
    new = path.with_name(f".{path.name}.new")
    new.write_text(text)
    new.replace(path)


def point(place: Path, target: str | Path) -> None:
    """Make or re-point a symbolic link at one stroke."""
    new = place.with_name(f"{place.name}_tmp")
    new.symlink_to(target)
    new.replace(place)


@pytest.fixture
def entries(tmp_path: Path) -> Path:
    directory = tmp_path / "entries"
    directory.mkdir()
    (directory / "a.yaml").write_text("1")
    return directory
