"""Latency from an edit of an entry file to the messages on open streams, and loads of large files.

The time starts at the rename of the new file and ends when the client has the message.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.bench.findings import OURS, Budget, Finding
from tests.bench.holding import QUIET_SECONDS, Streams, streams_of
from tests.bench.servers import Server, agent, x509
from tests.bench.starting import entries
from tests.bench.wire import connected
from tests.support.agent import REPOSITORY, RunningAgent

STREAMS = (100, 300, 1000)
ROUNDS = 5
LOADS = (1000, 10_000, 100_000)
LOAD_ROUNDS = 3
PACE_SECONDS = 0.05
"""The interval of a caller's calls during a load; their cost is negligible."""
EDIT_BUDGET_MS = 60.0
LOAD_BUDGET_S = 5.0
EDIT = "an edit of the entry file among open streams"
LOAD = "load of an edited file of so many entries"
CPU = "CPU per edit, ms"


def measure() -> list[Finding]:
    """Measure edits for one stream and for all streams, and loads."""
    findings = [finding for size in STREAMS for finding in _edits(size)]
    return [*findings, *(finding for size in LOADS for finding in _loads(size))]


def _entries(shared: int, narrow: int, program: Path) -> str:
    me = f"unix:uid:{os.getuid()}"
    made = (
        {"spiffe_id": f"/shared/{shared}", "selectors": [me]},
        {"spiffe_id": f"/narrow/{narrow}", "selectors": [me, f"unix:path:{program}"]},
    )
    return "entries:\n" + "".join(f"  - {json.dumps(entry)}\n" for entry in made)


def _edit(running: RunningAgent, text: str) -> float:
    """Replace the entry file by a rename; return the time of the rename."""
    beside = running.entries.with_suffix(".new")
    beside.write_text(text)
    began = time.perf_counter()
    beside.rename(running.entries)
    return began


def _edits(size: int) -> list[Finding]:
    with agent() as (server, running), streams_of(server) as streams:
        # A copy of the interpreter: its path matches no other entry.
        program = running.directory / "workload"
        shutil.copy(Path(sys.executable).resolve(), program)
        running.entries.write_text(_entries(0, 0, program))
        _wait_until_served(server, b"/shared/0")
        streams.open(size)
        one, one_cpu = _for_one(server, running, program, streams)
        all_of_them, all_cpu = _for_all(server, running, program, streams)
    budget = Budget(most=EDIT_BUDGET_MS) if size == STREAMS[-1] else None
    values = {
        "that concerns one: to its message, ms": one,
        f"that concerns one: {CPU}": one_cpu,
        "that concerns all: to the last message, ms": all_of_them,
        f"that concerns all: {CPU}": all_cpu,
    }
    return [
        Finding(
            scenario=EDIT,
            measure=measure,
            size=size,
            values={OURS: several},
            budget=budget if several is one else None,
        )
        for measure, several in values.items()
    ]


def _for_one(
    server: Server, running: RunningAgent, program: Path, streams: Streams
) -> tuple[list[float], list[float]]:
    times, cpu = [], []
    with _watcher(server, program) as moments:
        for number in range(1, ROUNDS + 1):
            streams.quiet(QUIET_SECONDS)
            before = server.cpu_seconds()
            began = _edit(running, _entries(0, number, program))
            times.append((next(moments) - began) * 1e3)
            messages = streams.quiet(QUIET_SECONDS)
            assert not messages, f"{messages} unaffected streams got a message"
            cpu.append((server.cpu_seconds() - before) * 1e3)
    return times, cpu


def _for_all(
    server: Server, running: RunningAgent, program: Path, streams: Streams
) -> tuple[list[float], list[float]]:
    times, cpu = [], []
    for number in range(1, ROUNDS + 1):
        streams.quiet(QUIET_SECONDS)
        before = server.cpu_seconds()
        began = _edit(running, _entries(number, ROUNDS, program))
        times.append((streams.gather(len(streams)) - began) * 1e3)
        cpu.append((server.cpu_seconds() - before) * 1e3)
    return times, cpu


@contextmanager
def _watcher(server: Server, program: Path) -> Iterator[Iterator[float]]:
    """Run a workload with an open stream; yield the arrival times after its first message."""
    process = subprocess.Popen(
        [program, REPOSITORY / "tests/bench/watcher.py", server.socket],
        stdout=subprocess.PIPE,
        env={
            **os.environ,
            "PYTHONHOME": sys.base_prefix,
            "PYTHONPATH": os.pathsep.join([str(REPOSITORY), *filter(None, sys.path)]),
        },
    )
    assert process.stdout is not None
    moments = map(float, process.stdout)
    try:
        next(moments)
        yield moments
    finally:
        process.kill()
        process.communicate()


def _loads(size: int) -> Sequence[Finding]:
    times, waits = [], []
    with agent() as (server, running), _watcher(server, Path(sys.executable)) as moments:
        for number in range(LOAD_ROUNDS):
            mine = {"spiffe_id": f"/me/{number}", "selectors": [f"unix:uid:{os.getuid()}"]}
            began = _edit(running, f"{entries(size)}  - {json.dumps(mine)}\n")
            waits.append(_wait_until_served(server, f"/me/{number}".encode()) * 1e3)
            times.append(next(moments) - began)
    budget = Budget(most=LOAD_BUDGET_S) if size == LOADS[-1] else None
    return [
        Finding(
            scenario=LOAD,
            measure="until in force, s",
            size=size,
            values={OURS: times},
            budget=budget,
        ),
        Finding(
            scenario=LOAD, measure="longest a caller waited, ms", size=size, values={OURS: waits}
        ),
    ]


def _wait_until_served(server: Server, wanted: bytes) -> float:
    """Fetch until `wanted` is in a response; return the longest latency in seconds."""
    longest = 0.0
    with connected(server.socket) as connection:
        while True:
            asked = time.perf_counter()
            served = connection.fetch(x509())
            took = time.perf_counter() - asked
            longest = max(longest, took)
            if wanted in served:
                return longest
            time.sleep(max(0.0, PACE_SECONDS - took))  # noqa: TID251 - the pace is the measure's
