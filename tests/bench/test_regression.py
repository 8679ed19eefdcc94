"""What the agent costs, as ratios to a bare gRPC server, is what it was when it was recorded.

Calls and messages that are pushed take not a quarter more instructions; with CPU and memory, which
are noisier, nothing has more than doubled.

Recorded by `make bench-reference`, in reference.json. Never compared are absolute times.
"""

from __future__ import annotations

import pytest

from tests.bench import calls, reference
from tests.support.agent import RunningAgent

pytestmark = pytest.mark.system


class SlowedAgent(RunningAgent):
    """Wastes about what a call takes, in each."""

    def _program(self) -> list[str]:
        return ["tests.support.slowed", "run", "-c", str(self.config)]


def test_nothing_takes_much_more_than_was_recorded() -> None:
    recorded = reference.read()
    now = reference.measure()
    assert now.keys() == recorded.keys()
    if found := reference.exceeded(recorded, now):
        # What disturbs a machine passes; what the program costs does not.
        found = reference.exceeded(recorded, reference.measure())
    assert not found, found


def test_a_doubling_would_be_noticed() -> None:
    recorded = reference.read()
    [(name, now)] = reference.of_instructions([calls.FETCH], SlowedAgent).items()
    assert 1.5 * recorded[name] < now < 2.2 * recorded[name], "it wastes something else"
    assert reference.exceeded(recorded, {name: now})
