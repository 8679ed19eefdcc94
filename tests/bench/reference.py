"""Ratios to the baseline: the recorded ones in reference.json, and a new measurement.

Measures: instructions and CPU time of the server for one call and for one pushed message, and the
memory of an open stream. Ratios within one run are comparable between machines. Ratios of
instructions vary by a few percent: a quarter more is a change of the program. Ratios of CPU time
include the kernel's work and vary by a third: only a large excess is significant.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from tests.bench import calls, holding, instructions
from tests.bench.findings import Finding
from tests.bench.servers import all_servers
from tests.support.agent import RunningAgent

FILE = Path(__file__).with_name("reference.json")
MOST, MOST_INSTRUCTIONS = 2.0, 1.25
"""Times the recorded ratio is a failure."""
ROUNDS = 7
CALLS = 150
STREAMS = 300
_OF_INSTRUCTIONS = (instructions.MEASURE, instructions.PER_STREAM)
_MEASURES = frozenset({calls.CPU, holding.MEMORY, holding.CPU, *_OF_INSTRUCTIONS})


def read() -> dict[str, float]:
    """Return the recorded ratios by scenario and measure."""
    recorded: dict[str, float] = json.loads(FILE.read_text())
    return recorded


def write(ratios: Mapping[str, float]) -> None:
    """Write ratios to reference.json."""
    FILE.write_text(json.dumps(ratios, indent=2, ensure_ascii=False) + "\n")


def measure() -> dict[str, float]:
    """Measure the ratios."""
    held = holding.measure(sizes=(STREAMS,), idle_seconds=0, pushes=ROUNDS)
    counted = instructions.measure(rounds=1, gate_alone=False)
    return {**_of_calls(), **_ratios(held), **_ratios(counted)}


def of_instructions(kinds: Iterable[calls.Calls], program: type[RunningAgent]) -> dict[str, float]:
    """Measure the instruction ratios of these kinds of calls, with `program` as the agent."""
    return _ratios(instructions.measure_calls(kinds, program))


def exceeded(recorded: Mapping[str, float], now: Mapping[str, float]) -> dict[str, str]:
    """Return the measured ratios above their limits, each with a message."""
    return {
        name: f"{now[name]:.2f} times the baseline, recorded were {recorded[name]:.2f}"
        for name in recorded.keys() & now.keys()
        if now[name] > _most(name) * recorded[name]
    }


def _of_calls() -> dict[str, float]:
    """Return the CPU ratios of calls, one at a time."""
    with all_servers() as servers:
        return _ratios(
            finding
            for kind in calls.KINDS
            for finding in calls.measure(kind, servers, 1, ROUNDS, CALLS)
        )


def _most(name: str) -> float:
    return MOST_INSTRUCTIONS if name.endswith(_OF_INSTRUCTIONS) else MOST


def _ratios(findings: Iterable[Finding]) -> dict[str, float]:
    ratios = {}
    for finding in findings:
        ratio = finding.ratio()
        if finding.measure in _MEASURES and ratio is not None:
            ratios[f"{finding.scenario}: {finding.measure}"] = round(ratio.median, 2)
    return ratios
