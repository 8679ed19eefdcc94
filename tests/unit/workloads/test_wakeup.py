"""Who waits for a change or a moment wakes up for these, and for nothing else."""

from __future__ import annotations

import asyncio

from agent.workloads.streams import Wakeup

FAR = 1000.0


def now() -> float:
    return asyncio.get_running_loop().time()


async def test_a_change_wakes_up_who_waits() -> None:
    wakeup = Wakeup()
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(wakeup.wait_until(now() + FAR))
        await asyncio.sleep(0)
        wakeup.set()
    assert waiting.result()


async def test_a_change_before_the_wait_counts_until_it_is_cleared() -> None:
    wakeup = Wakeup()
    wakeup.set()
    assert await wakeup.wait_until(now() + FAR)
    assert await wakeup.wait_until(now() + FAR)
    wakeup.clear()
    assert not await wakeup.wait_until(now())


async def test_the_moment_ends_the_wait_and_not_before() -> None:
    moment = now() + 0.02
    assert not await Wakeup().wait_until(moment)
    assert now() >= moment - 0.002  # loops look at timers by the millisecond


async def test_the_moment_of_an_earlier_wait_ends_no_later_one() -> None:
    wakeup = Wakeup()
    earlier = now() + 0.02
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(wakeup.wait_until(earlier))
        await asyncio.sleep(0)
        wakeup.set()
    assert waiting.result()
    wakeup.clear()
    assert not await wakeup.wait_until(earlier + 0.05)
    assert now() > earlier + 0.04


async def test_one_who_gives_up_leaves_nothing_behind() -> None:
    wakeup = Wakeup()
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(wakeup.wait_until(now() + FAR))
        await asyncio.sleep(0)
        waiting.cancel()
    wakeup.set()  # nobody is there to be told
    assert wakeup.is_set()
