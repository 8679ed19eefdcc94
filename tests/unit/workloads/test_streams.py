"""Open streams: when they wake, and the identities served last."""

from __future__ import annotations

import asyncio
import datetime as dt
from types import SimpleNamespace
from typing import cast

import pytest

from agent.authority.authority_set import AuthorityKind
from agent.kernel.caller import Caller
from agent.workloads.entitlement import Entitlement
from agent.workloads.streams import Streams, Wakeup
from tests.support.agent import SAFETY_SECONDS
from tests.support.fakes import START, FakeClock, identity, settle

MINUTE = dt.timedelta(minutes=1)
FAR = 1000.0


class Stub(SimpleNamespace):
    """The part of a caller that the streams read."""

    def __hash__(self) -> int:  # type: ignore[override]
        return id(self)


def some_caller(*, alive: bool = True) -> Caller:
    return cast("Caller", Stub(process=SimpleNamespace(is_alive=lambda: alive)))


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def streams(clock: FakeClock) -> Streams:
    return Streams(clock)


def test_a_stream_is_listed_while_it_is_open(streams: Streams) -> None:
    caller = some_caller()
    with streams.open_stream(caller, "FetchX509SVID", AuthorityKind.X509) as stream:
        assert list(streams.open) == [stream]
        assert list(streams.callers()) == [caller]
    assert not list(streams.open)
    assert not list(streams.callers())


def test_a_change_wakes_only_the_streams_that_it_concerns(streams: Streams) -> None:
    with (
        streams.open_stream(some_caller(), "a", AuthorityKind.X509) as one,
        streams.open_stream(some_caller(), "b", AuthorityKind.JWT) as other,
    ):
        assert streams.wake(lambda stream: stream.kind is AuthorityKind.JWT) == 1
        assert other.changed.is_set()
        assert not one.changed.is_set()


def test_identities_served_last_are_kept_while_the_caller_is_connected(
    streams: Streams, clock: FakeClock
) -> None:
    caller = some_caller()
    streams.note_served(caller, "FetchX509SVID", [identity("a")])
    clock.set(START + MINUTE)
    streams.note_served(caller, "FetchX509SVID", [identity("b")])
    streams.note_served(caller, "FetchJWTSVID", [identity("a")])
    first, second = streams.served(caller)
    assert (first.method, first.at, first.identities) == (
        "FetchX509SVID",
        START + MINUTE,
        (identity("b"),),
    )
    assert second.method == "FetchJWTSVID"
    streams.note_served(exited := some_caller(alive=False), "FetchJWTSVID", [identity("a")])
    assert streams.callers() == (caller,)
    del caller, exited
    assert not streams._served


def test_the_latest_stream_of_each_caller(streams: Streams, clock: FakeClock) -> None:
    caller = some_caller()
    with streams.open_stream(caller, "a", AuthorityKind.X509):
        clock.set(START + MINUTE)
        with streams.open_stream(caller, "b", AuthorityKind.X509) as later:
            assert streams.latest() == (later,)


async def test_a_stream_wakes_at_the_end_of_its_entry(streams: Streams, clock: FakeClock) -> None:
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(streams.run())
        with (
            streams.open_stream(some_caller(), "a", AuthorityKind.X509) as ending,
            streams.open_stream(some_caller(), "b", AuthorityKind.X509) as lasting,
            streams.open_stream(some_caller(), "c", AuthorityKind.X509) as beginning,
        ):
            streams.show(ending, Entitlement(identities=(identity(expires_at=START + MINUTE),)))
            streams.show(lasting, Entitlement(identities=(identity(),)))
            await clock.advance(MINUTE - dt.timedelta(seconds=1))
            assert not ending.changed.is_set()
            await clock.advance(dt.timedelta(seconds=1))
            assert ending.changed.is_set()
            assert not lasting.changed.is_set()
            assert not beginning.changed.is_set()
        running.cancel()


# --- Wakeup ---------------------------------------------------------------------------------------


def now() -> float:
    return asyncio.get_running_loop().time()


async def test_set_ends_the_wait_under_way() -> None:
    wakeup = Wakeup()
    async with asyncio.timeout(SAFETY_SECONDS), asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(wakeup.wait_until(now() + FAR))
        await asyncio.sleep(0)
        wakeup.set()
    assert waiting.result()


async def test_set_before_the_wait_counts_until_it_is_cleared() -> None:
    wakeup = Wakeup()
    wakeup.set()
    assert await wakeup.wait_until(now() + FAR)
    assert await wakeup.wait_until(now() + FAR)
    wakeup.clear()
    assert not await wakeup.wait_until(now())


async def test_the_wait_ends_at_its_moment_and_not_before() -> None:
    moment, passed = now() + 0.02, asyncio.Event()
    asyncio.get_running_loop().call_at(moment - 0.005, passed.set)
    assert not await Wakeup().wait_until(moment)
    assert passed.is_set()


async def test_the_moment_of_an_earlier_wait_does_not_end_a_later_one() -> None:
    wakeup, passed = Wakeup(), asyncio.Event()
    earlier = now() + 0.02
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(wakeup.wait_until(earlier))
        await asyncio.sleep(0)
        wakeup.set()
    assert waiting.result()
    wakeup.clear()
    asyncio.get_running_loop().call_at(earlier + 0.01, passed.set)
    assert not await wakeup.wait_until(earlier + 0.02)
    assert passed.is_set()


async def test_a_cancelled_wait_leaves_no_timer_and_no_waiter() -> None:
    wakeup = Wakeup()
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(wakeup.wait_until(now() + FAR))
        await settle()
        waiting.cancel()
    wakeup.set()
    assert wakeup.is_set()
