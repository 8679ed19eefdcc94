"""`make bench`: what a call costs the agent, against a bare grpc.aio server in the same run.

CPU time of the server's process per operation, from /proc/PID/stat; the client runs elsewhere and
is not measured. Servers take turns, round by round: on a noisy machine only ratios within one run
mean something. A table for people, and bench-results.json.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import grpc
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.bench import checks, metering
from tests.support.agent import (
    REPOSITORY,
    RunningAgent,
    entry_for_me,
)

ROUNDS = 7
CALLS = 1500
CONNECTIONS = 400
TICKS = os.sysconf("SC_CLK_TCK")
METADATA = (("workload.spiffe.io", "true"),)


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far (proc(5): fields 14 and 15)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def fetch(channel: grpc.Channel) -> bytes:
    """One stream, one message."""
    method = channel.unary_stream(
        "/SpiffeWorkloadAPI/FetchX509SVID",
        request_serializer=bytes,
        response_deserializer=bytes,
    )
    call = method(b"", metadata=METADATA)
    message = next(call)
    call.cancel()
    return bytes(message)


def open_channel(address: str) -> grpc.Channel:
    """A connection of its own: gRPC would share one among channels with equal options."""
    return grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])


def calls(address: str) -> int:
    """Fetches on one open connection."""
    with open_channel(address) as channel:
        for _ in range(CALLS):
            fetch(channel)
    return CALLS


def connections(address: str) -> int:
    """Connections with one fetch each."""
    for _ in range(CONNECTIONS):
        with open_channel(address) as channel:
            fetch(channel)
    return CONNECTIONS


SCENARIOS: dict[str, Callable[[str], int]] = {
    "FetchX509SVID, open connection": calls,
    "connect + FetchX509SVID": connections,
}
BUDGET = 1.6


def measure(scenario: Callable[[str], int], address: str, pid: int) -> float:
    """Microseconds of the server's CPU per operation."""
    before = cpu_seconds(pid)
    count = scenario(address)
    return (cpu_seconds(pid) - before) / count * 1e6


def compare(agent: RunningAgent, baseline: str, baseline_pid: int) -> list[dict[str, object]]:
    """Each scenario against both servers in turn."""
    results: list[dict[str, object]] = []
    for name, scenario in SCENARIOS.items():
        pairs = [
            (measure(scenario, agent.address, agent.pid), measure(scenario, baseline, baseline_pid))
            for _ in range(ROUNDS)
        ]
        ratios = sorted(ours / theirs for ours, theirs in pairs)
        results.append(
            {
                "scenario": name,
                "agent_us": round(statistics.median(ours for ours, _ in pairs), 1),
                "baseline_us": round(statistics.median(theirs for _, theirs in pairs), 1),
                "ratio": round(statistics.median(ratios), 2),
                "ratio_min": round(ratios[0], 2),
                "ratio_max": round(ratios[-1], 2),
                "budget": BUDGET,
            }
        )
    return results


def show(results: dict[str, list[dict[str, object]]]) -> None:
    """The tables, and the file."""
    for title, rows in results.items():
        table = Table(title=title)
        for heading in rows[0]:
            table.add_column(heading.replace("_", " "))
        for row in rows:
            table.add_row(*map(str, row.values()))
        Console().print(table)
    Path("bench-results.json").write_text(json.dumps(results, indent=2) + "\n")


def main() -> None:
    """Run everything."""
    agent = RunningAgent(entry_for_me(), config="log: {level: warning}")
    with tempfile.TemporaryDirectory(prefix="vouchd-") as folder, open_channel(agent.address) as c:
        response, socket = Path(folder) / "response", Path(folder) / "s"
        response.write_bytes(fetch(c))
        baseline = subprocess.Popen(
            [sys.executable, REPOSITORY / "tests/bench/baseline.py", socket, response],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        )
        try:
            assert baseline.stdout is not None
            baseline.stdout.readline()
            whole = compare(agent, f"unix:{socket}", baseline.pid)
            # In processes of their own: their clients would share this one's threads.
            edits, attested = (
                subprocess.check_output(
                    [sys.executable, REPOSITORY / f"tests/bench/{name}.py"],
                    env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
                )
                for name in ("reload", "attesting")
            )
            call = whole[0]["agent_us"]
            assert isinstance(call, float)
            show(
                {
                    "CPU of the server per operation": whole,
                    "what the checks of a caller cost, of a call on an open connection": (
                        checks.measure(call)
                    ),
                    "what the metrics cost, of a call on an open connection": (
                        metering.measure(call)
                    ),
                    "edits of entry files": json.loads(edits),
                    **json.loads(attested),
                }
            )
        finally:
            baseline.kill()
            baseline.wait()
            agent.close()


if __name__ == "__main__":
    main()
