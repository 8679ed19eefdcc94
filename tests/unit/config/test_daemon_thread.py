"""Blocking work runs off the event loop, and reports its result or error."""

import asyncio
import threading

import pytest

from agent.config.daemon_thread import run_in_daemon_thread
from tests.support.agent import SAFETY_SECONDS


async def test_result_and_error_reach_the_caller() -> None:
    assert await run_in_daemon_thread(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        await run_in_daemon_thread(lambda: 1 / 0)


async def test_work_that_blocks_does_not_block_the_loop_and_is_warned_of_once() -> None:
    answers, warned = threading.Event(), asyncio.Event()
    warnings: list[int] = []

    def warn() -> None:
        warnings.append(1)
        warned.set()

    async with asyncio.timeout(SAFETY_SECONDS), asyncio.TaskGroup() as tasks:
        work = tasks.create_task(run_in_daemon_thread(answers.wait, warn=warn, warn_after=0.01))
        await warned.wait()
        assert not work.done()
        answers.set()
        assert await work
    assert warnings == [1]


async def test_abandoned_work_ends_later_without_a_trace() -> None:
    answers, ended = threading.Event(), threading.Event()

    def block() -> None:
        answers.wait(SAFETY_SECONDS)
        ended.set()
        raise ZeroDivisionError

    async with asyncio.TaskGroup() as tasks:
        work = tasks.create_task(run_in_daemon_thread(block))
        await asyncio.sleep(0)
        work.cancel()
    answers.set()
    await asyncio.to_thread(ended.wait, 20)
    await asyncio.sleep(0.01)  # for the callback of the thread, which finds the future cancelled
