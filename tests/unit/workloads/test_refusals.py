"""The last refused calls of each user."""

from __future__ import annotations

import datetime as dt

import pytest

from agent.kernel.credentials import Credentials
from agent.telemetry.audit import RefusedCall
from agent.workloads.refusals import PER_USER, Refusals
from tests.support.fakes import START, FakeClock

MINUTE = dt.timedelta(minutes=1)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def credentials(pid: int, uid: int) -> Credentials:
    return Credentials(pid=pid, uid=uid, gid=0, groups=())


def refused(reason: str) -> RefusedCall:
    return RefusedCall(method="FetchX509SVID", code="PERMISSION_DENIED", reason=reason)


def test_refusals_of_a_pid_or_its_user_come_latest_first(clock: FakeClock) -> None:
    refusals = Refusals(clock)
    for number, (pid, uid) in enumerate([(1, 10), (2, 10), (3, 30), (1, 40)]):
        clock.set(START + number * MINUTE)
        refusals.note(credentials(pid, uid), refused(f"r{number}"))
    assert [each.reason for each in refusals.of(1, 10)] == ["r3", "r1", "r0"]
    [one] = refusals.of(3, 99)
    assert (one.at, one.pid, one.uid) == (START + 2 * MINUTE, 3, 30)
    assert (one.method, one.code) == ("FetchX509SVID", "PERMISSION_DENIED")
    assert refusals.of(5, 50) == ()


def test_a_user_refused_all_the_time_displaces_only_its_own_refusals(clock: FakeClock) -> None:
    refusals = Refusals(clock, users=3)
    refusals.note(credentials(1, 1), refused("of user 1"))
    for number in range(100):
        refusals.note(credentials(2, 2), refused(f"r{number}"))
    assert len(refusals.of(2, 2)) == PER_USER
    assert [each.reason for each in refusals.of(1, 1)] == ["of user 1"]
    for uid in range(3, 6):
        refusals.note(credentials(uid, uid), refused("x"))
    assert refusals.of(1, 1) == ()
