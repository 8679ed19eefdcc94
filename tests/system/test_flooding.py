"""One user who asks with all its might does not keep another waiting."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator

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
    percentile,
)

pytestmark = pytest.mark.system

# Of the quiet value. Whatever is below the floor nobody notices, and the machine may be uneven.
MOST = 3.0
FLOOR_SECONDS = 0.005


@pytest.fixture
def agent() -> Iterator[RunningAgent]:
    agent = RunningAgent(ENTRIES, config="log: {level: warning}", prefix=FIRST)
    yield agent
    agent.close()


@pytest.mark.parametrize("behave", FLOODS.values(), ids=FLOODS)
def test_another_user_is_served_as_if_nothing_were(
    agent: RunningAgent, behave: Callable[[str], None]
) -> None:
    path = str(agent.socket)
    quiet = latencies(path)
    with flood(behave, path):
        loud = latencies(path)
    for kind in ("call", "connect"):
        before, during = (percentile(0.99, getattr(each, kind)) for each in (quiet, loud))
        assert during < MOST * max(before, FLOOR_SECONDS), (kind, before, during)


def connects(path: str, uid: int) -> bool:
    """Whether a process of this user gets as far as an answer."""

    def run() -> None:
        pids.become(uid)
        raw.connect(path).fetch_x509()

    return pids.reap(pids.fork(run)) == 0


def waits_as(uid: int) -> None:
    pids.become(uid)
    signal.pause()


def tells(agent: RunningAgent, wanted: str, *question: object) -> bool:
    """Whether the operator is told so at some time: nobody is locked out all the time."""
    ask = (*question, "--output", "json", "--admin-socket", agent.admin_socket)
    return any(wanted in vouchd(*ask).stdout for _ in range(40))


def test_one_who_hangs_up_without_end_is_locked_out_until_it_stops(agent: RunningAgent) -> None:
    path = str(agent.socket)
    with flood(hangs_up, path):
        assert f"uid={FLOODER}" in agent.wait_for_log("user locked out")
        assert connects(path, OTHER)
        refused = [not connects(path, FLOODER) for _ in range(5)]
        assert any(refused), "it is let in for moments only"
        with pids.sleeping_child(lambda: waits_as(FLOODER)) as of_flooder:
            assert tells(agent, "its user is locked out of the socket", "explain", of_flooder)
        assert tells(agent, f'"locked_out_uids": [{FLOODER}]', "status")
    patient_until = time.monotonic() + 10
    while not connects(path, FLOODER):
        assert time.monotonic() < patient_until, "it stays locked out"
    assert connects(path, OTHER)
