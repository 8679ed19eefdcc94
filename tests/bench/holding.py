"""Open streams: memory, descriptors and CPU time while idle, and a push to all of them."""

from __future__ import annotations

import os
import select
import struct
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from tests.bench.findings import OURS, Budget, Finding
from tests.bench.servers import Server, all_servers, x509
from tests.bench.wire import SAFETY_SECONDS, CallFailedError, Connection, crowd
from tests.support import pids

SIZES = (250, 1000, 4000)
IDLE_SECONDS = 60.0
"""The agent's re-attestation interval, so that the idle time contains one re-attestation."""
PUSHES = 3
SCENARIO = "open streams, one a connection"
PUSHED = "a change of the bundle, to all open streams"
MEMORY, DESCRIPTORS = "memory per stream, KiB", "descriptors per stream"
IDLE = "CPU idle, % (one value, of a minute)"
LAST, CPU = "to the last, ms", "CPU per stream, µs"
BUDGETS = {MEMORY: 12.0, DESCRIPTORS: 2.0, IDLE: 0.6}
# All sent messages have arrived after this time.
QUIET_SECONDS = 0.3
# Streams that are opened at once; more would wait in the agent's queue.
_TOGETHER = 100
# Streams of one process, as in a workload. The connections of a process share its attestation.
_OF_A_PROCESS = 10
_MOMENT = struct.Struct("d")


class Streams:
    """Open streams of many processes. Owns the processes: `close` it."""

    def __init__(self, socket: str) -> None:
        self._socket = socket
        self._size = 0
        self._processes: list[int] = []
        self._moments, self._report = os.pipe()
        self._poll = select.poll()
        self._poll.register(self._moments, select.POLLIN)

    def __len__(self) -> int:
        """Return the number of streams."""
        return self._size

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            pids.kill_and_reap(process)
        os.close(self._moments)
        os.close(self._report)

    def open(self, count: int) -> None:
        """Open more streams, each on its own connection, and wait for the message of each."""
        for opened in range(0, count, _TOGETHER):
            together = min(_TOGETHER, count - opened)
            for begun in range(0, together, _OF_A_PROCESS):
                self._fork(min(_OF_A_PROCESS, together - begun))
            self.gather(together)
        self._size += count

    def gather(self, count: int) -> float:
        """Wait for `count` messages; return the arrival time of the last.

        Raises:
            CallFailedError: a call failed, or no message arrived within SAFETY_SECONDS.
        """
        last = 0.0
        while count > 0:
            moments = self._read(SAFETY_SECONDS)
            if not moments:
                raise CallFailedError(f"{count} messages are missing")
            count -= len(moments)
            last = max(last, *moments)
        return last

    def quiet(self, seconds: float) -> int:
        """Wait until no message has arrived for `seconds`; return the number before."""
        messages = 0
        while moments := self._read(seconds):
            messages += len(moments)
        return messages

    def _read(self, seconds: float) -> list[float]:
        if not self._poll.poll(seconds * 1000):
            return []
        return [moment for (moment,) in _MOMENT.iter_unpack(os.read(self._moments, 1 << 16))]

    def _fork(self, count: int) -> None:
        self._processes.append(pids.fork(lambda: self._hold(count)))

    def _hold(self, count: int) -> None:
        """Hold `count` streams in a child process and report each message, until killed."""

        def note(_connection: Connection, _stream: int, moment: float) -> None:
            os.write(self._report, _MOMENT.pack(moment))

        with crowd(self._socket, count) as connections:
            for connection in connections.connections():
                connection.call(x509())
            connections.gather(sys.maxsize, note, patience=None)


@contextmanager
def streams_of(server: Server) -> Iterator[Streams]:
    """Yield an empty set of streams; close it after the block."""
    streams = Streams(server.socket)
    try:
        yield streams
    finally:
        streams.close()


@dataclass(frozen=True, slots=True)
class _Held:
    """The open streams of one server."""

    server: Server
    streams: Streams
    size: int


class _Values:
    """Measured values by measure, size and server."""

    def __init__(self) -> None:
        self._values: defaultdict[tuple[str, int], dict[str, list[float]]] = defaultdict(dict)

    def note(self, measure: str, held: _Held, value: float) -> None:
        """Add the value of one round."""
        self._values[measure, held.size].setdefault(held.server.name, []).append(value)

    def findings(self) -> list[Finding]:
        """Return the findings, grouped by measure."""
        return [
            Finding(
                scenario=PUSHED if measure in {LAST, CPU} else SCENARIO,
                measure=measure,
                size=size,
                values=by_server,
                per_one=measure in {MEMORY, DESCRIPTORS, CPU},
                budget=Budget(most=BUDGETS[measure]) if measure in BUDGETS else None,
            )
            for measure in (MEMORY, DESCRIPTORS, IDLE, LAST, CPU)
            for (which, size), by_server in self._values.items()
            if which == measure and OURS in by_server
        ]


def measure(
    other: Server | None = None,
    sizes: Sequence[int] = SIZES,
    idle_seconds: float = IDLE_SECONDS,
    pushes: int = PUSHES,
) -> list[Finding]:
    """Measure with new servers for each size, since a used server has freed memory to reuse.

    All servers are idle at the same time, to save time.
    """
    values = _Values()
    with ExitStack() as stack:
        everything = [
            _Held(server, stack.enter_context(streams_of(server)), size)
            for size in sizes
            for server in stack.enter_context(all_servers(other))
        ]
        for held in everything:
            _open(held, values)
        _idle(everything, idle_seconds, values)
        for _ in range(pushes):
            for held in everything:
                _push(held, values)
    return values.findings()


def _open(held: _Held, values: _Values) -> None:
    server = held.server
    memory, descriptors = server.memory_kib(), server.descriptors()
    held.streams.open(held.size)
    held.streams.quiet(QUIET_SECONDS)
    values.note(MEMORY, held, (server.memory_kib() - memory) / held.size)
    values.note(DESCRIPTORS, held, (server.descriptors() - descriptors) / held.size)


def _idle(everything: Sequence[_Held], seconds: float, values: _Values) -> None:
    before = [held.server.cpu_seconds() for held in everything]
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        for held in everything:
            held.streams.quiet(QUIET_SECONDS)
    lasted = time.perf_counter() - began
    for held, cpu in zip(everything, before, strict=True):
        values.note(IDLE, held, 100 * (held.server.cpu_seconds() - cpu) / lasted)


def _push(held: _Held, values: _Values) -> None:
    server, streams = held.server, held.streams
    if server.changes is None:
        return
    before, began = server.cpu_seconds(), time.perf_counter()
    server.changes.begin()
    last = streams.gather(held.size)
    values.note(CPU, held, (server.cpu_seconds() - before) / held.size * 1e6)
    values.note(LAST, held, (last - began) * 1e3)
    server.changes.settle()
    streams.quiet(QUIET_SECONDS)
