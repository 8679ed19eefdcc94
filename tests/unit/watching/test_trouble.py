"""Where nothing can be watched, or a watch breaks."""

import asyncio
import os
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

import pytest
from structlog.testing import capture_logs
from watchfiles._rust_notify import RustNotify

from agent import watching
from tests.unit.watching.conftest import Reports, assert_noticed, following, rest


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


async def test_where_nothing_can_be_watched_one_warning_is_logged_and_glances_go_on(
    entries: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "RETRY_SECONDS", 0.1)
    with capture_logs() as logs:
        reports = Reports(entries)
        with _no_more_descriptors():
            async with asyncio.TaskGroup() as tasks:
                task = tasks.create_task(reports.run())
                await asyncio.sleep(0.3)
                assert reports.count == 0
                (entries / "a.yaml").write_text("2")
                await reports.after(0)
                task.cancel()
    (warning,) = logs
    assert warning["event"] == "entry files cannot be watched"
    assert "Too many open files" in warning["reason"]
    assert warning["advice"] == "they are looked at every 0.1 s; SIGHUP reloads them at once"


async def test_a_watch_that_breaks_is_made_again(
    entries: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "RETRY_SECONDS", 0.05)
    wait = watching._wait
    failures = [OSError("broken")]

    async def fail_once(watcher: RustNotify, seconds: float) -> list[str]:
        if failures:
            raise failures.pop()
        return await wait(watcher, seconds)

    monkeypatch.setattr(watching, "_wait", fail_once)
    with capture_logs() as logs:
        await assert_noticed(entries, lambda: (entries / "a.yaml").write_text("2"))
    assert [each["reason"] for each in logs] == ["broken"]


async def test_a_directory_that_goes_before_it_is_watched_is_no_trouble(
    entries: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    removals = [entries]

    def remove_first(*args: Any, **options: Any) -> RustNotify:
        if removals:
            shutil.rmtree(removals.pop())
        return RustNotify(*args, **options)

    monkeypatch.setattr(watching, "RustNotify", remove_first)
    with capture_logs() as logs:
        async with following(entries) as reports:
            await reports.after(0)
            await rest()
            entries.mkdir()
            await reports.after(1)
    assert logs == []


async def test_cancelling_leaves_no_thread_at_work(entries: Path) -> None:
    started = perf_counter()
    async with following(entries):
        await rest()
    await asyncio.get_running_loop().shutdown_default_executor()
    assert perf_counter() - started < watching.GLANCE_SECONDS / 2
