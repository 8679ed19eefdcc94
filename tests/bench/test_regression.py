"""Cost regression test: ratios of the agent to a bare gRPC server against recorded ratios.

Limits: 1.25 times the recorded instructions of a call or a pushed message; 2 times the recorded
CPU time or memory, which are noisier. Absolute times are never compared.

`make bench-reference` records the ratios in reference.json.
"""

from __future__ import annotations

import pytest

from tests.bench import calls, reference
from tests.support.agent import RunningAgent

pytestmark = pytest.mark.system


class SlowedAgent(RunningAgent):
    """An agent that wastes about the instructions of one call in each call."""

    def _program(self) -> list[str]:
        return ["tests.support.slowed", "run", "-c", str(self.config)]


def test_no_measure_exceeds_its_recorded_value() -> None:
    recorded = reference.read()
    now = reference.measure()
    assert now.keys() == recorded.keys()
    if found := reference.exceeded(recorded, now):
        # A disturbance of the machine passes; a regression shows in the second run too.
        found = reference.exceeded(recorded, reference.measure())
    assert not found, found


def test_doubled_cost_is_a_regression() -> None:
    recorded = reference.read()
    [(name, now)] = reference.of_instructions([calls.FETCH], SlowedAgent).items()
    assert 1.5 * recorded[name] < now < 2.2 * recorded[name], (
        "tests.support.slowed is miscalibrated"
    )
    assert reference.exceeded(recorded, {name: now})
