"""What the agent costs, as ratios to a bare gRPC server, has not doubled since it was recorded.

Nor do its calls take a quarter more instructions.

Recorded by `make bench-reference`, in reference.json. Never compared are absolute times.
"""

from __future__ import annotations

import pytest

from tests.bench import calls, reference
from tests.support.agent import RunningAgent

pytestmark = pytest.mark.system


class SlowedAgent(RunningAgent):
    """Wastes some milliseconds of every call."""

    def _program(self) -> list[str]:
        return ["tests.support.slowed", "run", "-c", str(self.config)]


def test_nothing_has_doubled() -> None:
    recorded = reference.read()
    now = reference.measure()
    assert now.keys() == recorded.keys()
    if found := reference.doubled(recorded, now):
        # What disturbs a machine passes; what the program costs does not.
        found = reference.doubled(recorded, reference.measure())
    assert not found, found


def test_a_slower_agent_would_be_noticed() -> None:
    now = reference.of_calls([calls.FETCH], SlowedAgent)
    assert reference.doubled(reference.read(), now).keys() == now.keys()
