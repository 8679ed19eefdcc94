"""Entry files go on being followed, whatever happens."""

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from agent.config.watch import FileWatch
from agent.service import reload as reload_module
from agent.service.reload import follow
from tests.support.fakes import Lines


class Broken(FileWatch):
    """Breaks the first time."""

    times = 0

    async def changes(self) -> AsyncGenerator[None, None]:
        self.times += 1
        if self.times == 1:
            raise ZeroDivisionError
        while True:
            yield
            await asyncio.sleep(0)


async def test_a_defect_of_the_watch_is_logged_and_the_files_are_followed_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(reload_module, "RETRY_SECONDS", 0.0)
    lines, reloaded = Lines(), asyncio.Event()

    async def reload() -> None:
        reloaded.set()

    watches = iter([Broken([tmp_path], lines.log)])
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        task = tasks.create_task(follow(asyncio.Event(), watches, reload, reload, lines.log))
        await reloaded.wait()
        task.cancel()
    assert len(lines.of("internal error")) == 1
