"""A flood of one user does not delay another user."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from tests.support import pids, raw
from tests.support.agent import RunningAgent
from tests.support.cli import vouchd
from tests.support.flooding import (
    ENTRIES,
    FIRST,
    FLOODER,
    FLOODS,
    OTHER,
    flood,
    hangs_up,
    latencies,
)

pytestmark = pytest.mark.system


@pytest.fixture
def agent() -> Iterator[RunningAgent]:
    agent = RunningAgent(ENTRIES, config="log: {level: warning}", prefix=FIRST)
    yield agent
    agent.close()


@pytest.mark.parametrize("behave", FLOODS.values(), ids=FLOODS)
def test_another_user_makes_its_calls_during_a_flood(
    agent: RunningAgent, behave: Callable[[str], None]
) -> None:
    """At least half as many as without the flood; `make bench` measures the latencies."""
    path = str(agent.socket)
    quiet = latencies(path)
    with flood(behave, path):
        loud = latencies(path)
    assert len(loud.connect) > len(quiet.connect) / 2


def connects(path: str, uid: int) -> bool:
    """Whether a process of this user gets a response."""

    def run() -> None:
        pids.become(uid)
        raw.connect(path).fetch_x509()

    return pids.reap(pids.fork(run)) == 0


def waits_as(uid: int) -> None:
    pids.become(uid)
    signal.pause()


def reports(agent: RunningAgent, wanted: str, *question: object) -> bool:
    """Whether the command reports it once in some attempts: a lockout lasts a moment."""
    ask = (*question, "--output", "json", "--admin-socket", agent.admin_socket)
    return any(wanted in vouchd(*ask).stdout for _ in range(40))


def test_a_user_that_hangs_up_without_end_is_locked_out_until_it_stops(agent: RunningAgent) -> None:
    path = str(agent.socket)
    with flood(hangs_up, path):
        assert f"uid={FLOODER}" in agent.wait_for_log("user locked out")
        assert connects(path, OTHER)
        refused = [not connects(path, FLOODER) for _ in range(5)]
        assert any(refused), "it is never locked out"
        with pids.sleeping_child(lambda: waits_as(FLOODER)) as of_flooder:
            assert reports(agent, "its user is locked out of the socket", "explain", of_flooder)
        assert reports(agent, f'"locked_out_uids": [{FLOODER}]', "status")
    assert any(connects(path, FLOODER) for _ in range(1000)), "it stays locked out"
    assert connects(path, OTHER)


def test_no_user_is_locked_out_with_the_lockout_switched_off() -> None:
    agent = RunningAgent(
        ENTRIES, config="log: {level: warning}\nlimits: {lockout: false}", prefix=FIRST
    )
    with closing(agent), flood(hangs_up, str(agent.socket)):
        assert all(connects(str(agent.socket), FLOODER) for _ in range(5))
        assert "user locked out" not in agent.log
