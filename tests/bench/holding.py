"""Streams that are open: what each takes while nothing happens, and a change that goes to all."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence

from tests.bench.findings import OURS, Budget, Finding
from tests.bench.servers import Server, all_servers, x509
from tests.bench.wire import Crowd, crowd

SIZES = (250, 1000, 4000)
IDLE_SECONDS = 3.0
PUSHES = 3
SCENARIO = "open streams, one a connection"
PUSHED = "a change of the bundle, to all open streams"
MEMORY, DESCRIPTORS, IDLE = "memory per stream, KiB", "descriptors per stream", "CPU idle, %"
LAST, CPU = "to the last, ms", "CPU per stream, µs"
BUDGETS = {MEMORY: 64.0, DESCRIPTORS: 4.0, IDLE: 1.0}
# So many are opened at a time, so that none waits for all the others.
_TOGETHER = 100
# Nothing is on its way any more after so long.
QUIET_SECONDS = 0.3

Values = defaultdict[str, dict[str, list[float]]]


def measure(
    other: Server | None = None,
    sizes: Sequence[int] = SIZES,
    idle_seconds: float = IDLE_SECONDS,
) -> list[Finding]:
    """New servers for every size: memory that was given back once is not given again."""
    findings = []
    for size in sizes:
        values: Values = defaultdict(dict)
        with all_servers(other) as servers:
            for server in servers:
                _hold(server, size, values, idle_seconds)
        findings += [
            Finding(
                scenario=PUSHED if measure in {LAST, CPU} else SCENARIO,
                measure=measure,
                size=size,
                values=by_server,
                per_one=measure in {MEMORY, DESCRIPTORS, CPU},
                budget=Budget(most=BUDGETS[measure]) if measure in BUDGETS else None,
            )
            for measure, by_server in values.items()
            if OURS in by_server
        ]
    return findings


def hold(server: Server, streams: Crowd, size: int) -> None:
    """Open so many streams and wait until each has its message."""
    for opened in range(0, size, _TOGETHER):
        together = min(_TOGETHER, size - opened)
        for _ in range(together):
            streams.connect(server.socket).call(x509())
        streams.gather(together)


def _hold(server: Server, size: int, values: Values, idle_seconds: float) -> None:
    with crowd() as streams:
        memory, descriptors = server.memory_kib(), server.descriptors()
        hold(server, streams, size)
        streams.quiet(QUIET_SECONDS)
        values[MEMORY][server.name] = [(server.memory_kib() - memory) / size]
        values[DESCRIPTORS][server.name] = [(server.descriptors() - descriptors) / size]
        before = server.cpu_seconds()
        streams.quiet(idle_seconds)
        idle = server.cpu_seconds() - before
        values[IDLE][server.name] = [100 * idle / idle_seconds]
        if server.changes is not None:
            pushes = [_push(server, streams) for _ in range(PUSHES)]
            values[LAST][server.name] = [seconds * 1e3 for seconds, _ in pushes]
            values[CPU][server.name] = [cpu / size * 1e6 for _, cpu in pushes]


def _push(server: Server, streams: Crowd) -> tuple[float, float]:
    """Seconds until all had the message, and of the server's CPU."""
    assert server.changes is not None
    before, began = server.cpu_seconds(), time.perf_counter()
    server.changes.begin()
    last = streams.gather(len(streams))
    cpu = server.cpu_seconds() - before
    server.changes.settle()
    streams.quiet(QUIET_SECONDS)
    return last - began, cpu
