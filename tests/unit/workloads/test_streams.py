"""Who is served, who is told, and who was refused."""

from __future__ import annotations

import asyncio
import datetime as dt
from types import SimpleNamespace
from typing import cast

import pytest

from agent.authority.authority_set import AuthorityKind
from agent.kernel.caller import Caller
from agent.kernel.credentials import Credentials
from agent.workloads import refusals
from agent.workloads.entitlement import Entitlement
from agent.workloads.refusals import Refusals
from agent.workloads.streams import Streams
from tests.support.fakes import START, FakeClock, identity

MINUTE = dt.timedelta(minutes=1)


class Somebody(SimpleNamespace):
    """As much of a caller as the roster looks at."""

    def __hash__(self) -> int:  # type: ignore[override]
        return id(self)


def somebody(*, alive: bool = True) -> Caller:
    return cast("Caller", Somebody(process=SimpleNamespace(is_alive=lambda: alive)))


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def streams(clock: FakeClock) -> Streams:
    return Streams(clock)


def test_a_stream_is_there_while_it_is_open(streams: Streams) -> None:
    me = somebody()
    with streams.open(me, "FetchX509SVID", AuthorityKind.X509) as stream:
        assert list(streams.streams) == [stream]
        assert list(streams.callers()) == [me]
    assert not list(streams.streams)
    assert not list(streams.callers())


def test_only_those_whom_it_concerns_are_told(streams: Streams) -> None:
    with (
        streams.open(somebody(), "a", AuthorityKind.X509) as one,
        streams.open(somebody(), "b", AuthorityKind.JWT) as other,
    ):
        assert streams.wake(lambda stream: stream.kind is AuthorityKind.JWT) == 1
        assert other.changed.is_set()
        assert not one.changed.is_set()


def test_what_was_served_last_is_remembered_while_the_caller_is_there(
    streams: Streams, clock: FakeClock
) -> None:
    me = somebody()
    streams.note_served(me, "x509-svid", [identity("a")])
    clock.set(START + MINUTE)
    streams.note_served(me, "x509-svid", [identity("b")])
    streams.note_served(me, "jwt-svid", [identity("a")])
    first, second = streams.served(me)
    assert (first.method, first.at, first.identities) == (
        "x509-svid",
        START + MINUTE,
        (identity("b"),),
    )
    assert second.method == "jwt-svid"
    streams.note_served(gone := somebody(alive=False), "jwt-svid", [identity("a")])
    assert streams.callers() == (me,)
    del me, gone
    assert not streams._served


def test_of_each_caller_the_latest_stream(streams: Streams, clock: FakeClock) -> None:
    me = somebody()
    with streams.open(me, "a", AuthorityKind.X509):
        clock.set(START + MINUTE)
        with streams.open(me, "b", AuthorityKind.X509) as later:
            assert streams.latest() == (later,)


async def test_streams_are_told_when_an_entry_ends(streams: Streams, clock: FakeClock) -> None:
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(streams.run())
        with (
            streams.open(somebody(), "a", AuthorityKind.X509) as ending,
            streams.open(somebody(), "b", AuthorityKind.X509) as lasting,
            streams.open(somebody(), "c", AuthorityKind.X509) as beginning,
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


def credentials(pid: int, uid: int) -> Credentials:
    return Credentials(pid=pid, uid=uid, gid=0, groups=())


def test_refusals_of_a_process_or_its_user_latest_first(clock: FakeClock) -> None:
    log = Refusals(clock)
    for number, (pid, uid) in enumerate([(1, 10), (2, 10), (3, 30), (1, 40)]):
        clock.set(START + number * MINUTE)
        log.note(credentials(pid, uid), "R", "PERMISSION_DENIED", f"r{number}")
    assert [each.reason for each in log.of(1, 10)] == ["r3", "r1", "r0"]
    [one] = log.of(3, 99)
    assert (one.at, one.pid, one.uid, one.request) == (START + 2 * MINUTE, 3, 30, "R")
    assert log.of(5, 50) == ()


def test_a_user_who_is_refused_all_the_time_takes_only_his_own_room(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refusals, "USERS", 3)
    log = Refusals(clock)
    log.note(credentials(1, 1), "R", "S", "mine")
    for number in range(100):
        log.note(credentials(2, 2), "R", "S", f"r{number}")
    assert len(log.of(2, 2)) == refusals.PER_USER
    assert [each.reason for each in log.of(1, 1)] == ["mine"]
    for uid in range(3, 6):
        log.note(credentials(uid, uid), "R", "S", "x")
    assert log.of(1, 1) == ()
