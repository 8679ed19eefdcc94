"""What calls of one user take while another floods the agent (needs root, to be two users)."""

from __future__ import annotations

from tests.bench.findings import BASELINE, OURS, Budget, Finding
from tests.support.agent import RunningAgent
from tests.support.flooding import ENTRIES, FIRST, FLOODS, Latencies, flood, latencies, percentile

PROCESSES = (1, 4, 16)
BUDGETED = 4
SECONDS = 4.0


def measure() -> list[Finding]:
    """The limits are the default ones. The baseline is the same agent without the flood."""
    agent = RunningAgent(ENTRIES, config="log: {level: warning}", prefix=FIRST)
    try:
        path = str(agent.socket)
        quiet, findings = latencies(path, SECONDS), []
        for name, behave in FLOODS.items():
            for processes in PROCESSES:
                with flood(behave, path, processes):
                    findings += _findings(name, processes, latencies(path, SECONDS), quiet)
    finally:
        agent.close()
    return findings


def _findings(name: str, processes: int, loud: Latencies, quiet: Latencies) -> list[Finding]:
    return [
        Finding(
            scenario=f"one user's processes flood (baseline: they do not): {name}",
            measure=f"{kind} of another user, p99, ms",
            size=processes,
            values={
                OURS: [1e3 * percentile(0.99, getattr(loud, kind))],
                BASELINE: [1e3 * percentile(0.99, getattr(quiet, kind))],
            },
            budget=Budget(most=3.0, of_baseline=True) if processes == BUDGETED else None,
        )
        for kind in ("call", "connect")
    ]
