"""One user who asks with all its might does not keep another waiting."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.support.agent import RunningAgent
from tests.support.flooding import (
    ENTRIES,
    FIRST,
    FLOODS,
    flood,
    latencies,
    percentile,
)

pytestmark = pytest.mark.system

# Of the quiet value. Whatever is below the floor nobody notices, and the machine may be uneven.
MOST = 3.0
FLOOR_SECONDS = 0.006


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
