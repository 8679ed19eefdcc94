"""Time from the start of the program to its ready line."""

from __future__ import annotations

import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.bench.findings import BASELINE, OURS, Budget, Finding
from tests.bench.servers import agent, started

ROUNDS = {10: 5, 1000: 5, 100_000: 2}
BUDGET_SIZE, BUDGET_SECONDS = 1000, 0.5
SCENARIO = "start with so many entries, until ready"


def measure() -> list[Finding]:
    """Measure the start of the servers, which alternate."""
    findings = []
    for size, rounds in ROUNDS.items():
        starts: dict[str, Callable[[], float]] = {
            OURS: partial(_agent, entries(size)),
            BASELINE: _baseline,
        }
        values = defaultdict(list)
        for number in range(rounds):
            for name in starts if number % 2 else reversed(starts):
                values[name].append(starts[name]())
        findings.append(
            Finding(
                scenario=SCENARIO,
                measure="until ready, s",
                size=size,
                values=values,
                budget=Budget(most=BUDGET_SECONDS) if size == BUDGET_SIZE else None,
            )
        )
    return findings


def entries(count: int, path: str = "/u") -> str:
    """Return an entry file with this number of entries, each for another UID."""
    made = (
        {"spiffe_id": f"{path}/{n}", "selectors": [f"unix:uid:{10**6 + n}", "unix:gid:5"]}
        for n in range(count)
    )
    return "entries:\n" + "".join(f"  - {json.dumps(entry)}\n" for entry in made)


def _agent(text: str) -> float:
    began = time.perf_counter()
    with agent(text):
        return time.perf_counter() - began


def _baseline() -> float:
    with tempfile.TemporaryDirectory(prefix="vouchd-", dir="/tmp") as folder:
        began = time.perf_counter()
        with started(f"{folder}/s", Path(folder)):
            return time.perf_counter() - began
