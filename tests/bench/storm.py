"""A storm: many processes connect at the same time, as after a boot or a deployment."""

from __future__ import annotations

import os
import struct
import time
from collections import defaultdict
from collections.abc import Sequence

from tests.bench.calls import settle
from tests.bench.findings import Finding
from tests.bench.servers import Server, x509
from tests.bench.wire import connected
from tests.support import pids
from tests.support.flooding import percentile

SIZES = (100, 300, 1000)
ROUNDS = 3
SCENARIO = "storm of processes, each connects and fetches"
CPU, LAST, P50 = "CPU per process, µs", "until the last has its SVID, ms", "p50, ms"
_TIMES = struct.Struct("dd")


def measure(
    servers: Sequence[Server], sizes: Sequence[int] = SIZES, rounds: int = ROUNDS
) -> list[Finding]:
    """Measure the storm of processes that were forked before and wait for a start signal."""
    findings = []
    for size in sizes:
        values: defaultdict[str, defaultdict[str, list[float]]] = defaultdict(
            lambda: defaultdict(list)
        )
        for number in range(rounds):
            for server in servers if number % 2 else reversed(servers):
                before = server.cpu_seconds()
                last, each = _storm(server.socket, size)
                settle(server)
                cpu = server.cpu_seconds() - before
                values[LAST][server.name].append(last * 1e3)
                values[P50][server.name].append(percentile(0.5, each) * 1e3)
                values[CPU][server.name].append(cpu / size * 1e6)
        findings += [
            Finding(
                scenario=SCENARIO,
                measure=measure,
                size=size,
                values=by_server,
                per_one=measure == CPU,
            )
            for measure, by_server in values.items()
        ]
    return findings


def _storm(socket: str, size: int) -> tuple[float, list[float]]:
    """Return the seconds from the start signal to the last SVID, and each process's latency."""
    (wait, word), (results, report) = os.pipe(), os.pipe()

    def process() -> None:
        os.close(word)
        os.read(wait, 1)
        began = time.perf_counter()
        with connected(socket) as connection:
            connection.fetch(x509())
        os.write(report, _TIMES.pack(began, time.perf_counter()))

    children = [pids.fork(process) for _ in range(size)]
    for mine_no_more in (wait, report):
        os.close(mine_no_more)
    began = time.perf_counter()
    os.close(word)
    with os.fdopen(results, "rb") as pipe:
        times = list(_TIMES.iter_unpack(pipe.read()))
    for child in children:
        assert pids.reap(child) == 0, "a process of the storm got nothing"
    return max(end for _, end in times) - began, [end - start for start, end in times]
