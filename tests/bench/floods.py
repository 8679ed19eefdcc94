"""Latency of one user's calls while another user floods the agent (needs root for two users)."""

from __future__ import annotations

from tests.bench.calls import settle
from tests.bench.findings import BASELINE, OURS, Budget, Finding
from tests.bench.servers import Server
from tests.support.agent import RunningAgent
from tests.support.flooding import ENTRIES, FIRST, FLOODS, Latencies, flood, latencies, percentile

PROCESSES = (1, 4, 16)
BUDGETED = 4
SECONDS = 3.0


def measure() -> list[Finding]:
    """Measure with the default limits; the baseline is the same agent just before each flood."""
    agent = RunningAgent(ENTRIES, config="log: {level: warning}", prefix=FIRST)
    try:
        server = Server(name=OURS, socket=str(agent.socket), pid=agent.pid)
        return [
            finding
            for name in FLOODS
            for processes in PROCESSES
            for finding in _flooded(server, name, processes)
        ]
    finally:
        agent.close()


def _flooded(server: Server, name: str, processes: int) -> list[Finding]:
    settle(server)  # the state of the flood before is gone
    quiet = latencies(server.socket, SECONDS)
    with flood(FLOODS[name], server.socket, processes):
        loud = latencies(server.socket, SECONDS)
    return _findings(name, processes, loud, quiet)


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
