"""Background tasks: a task that breaks stops the daemon, with its traceback in the log."""

from __future__ import annotations

import asyncio

import pytest

from agent.errors import DefectError
from agent.service.background import run_until
from tests.support.agent import SAFETY_SECONDS
from tests.support.fakes import FakeLog


async def endless(cancelled: list[str]) -> None:
    try:
        await asyncio.get_running_loop().create_future()
    finally:
        cancelled.append("endless")


async def returns() -> None:
    """Ends by itself, as the watchdog's task does without a watchdog."""


async def breaks() -> None:
    raise ZeroDivisionError("in the middle")


async def test_stop_cancels_every_task() -> None:
    stop, cancelled = asyncio.Event(), list[str]()
    async with asyncio.timeout(SAFETY_SECONDS), asyncio.TaskGroup() as tasks:
        tasks.create_task(run_until(stop, {"a": endless(cancelled), "b": returns()}, FakeLog().log))
        await asyncio.sleep(0)
        stop.set()
    assert cancelled == ["endless"]


async def test_a_task_that_breaks_is_logged_by_name_and_stops_the_others() -> None:
    lines, cancelled = FakeLog(), list[str]()
    tasks = {"svid renewal": breaks(), "status line": endless(cancelled)}
    async with asyncio.timeout(SAFETY_SECONDS):
        with pytest.raises(DefectError, match="'svid renewal' ended with ZeroDivisionError"):
            await run_until(asyncio.Event(), tasks, lines.log)
    [line] = lines.of("internal error")
    assert line["where"] == "svid renewal"
    assert line["exc_info"]
    assert cancelled == ["endless"]
