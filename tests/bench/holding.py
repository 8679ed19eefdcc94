"""Streams that are open: what each takes while nothing happens, and a change that goes to all."""

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
from tests.bench.wire import PATIENCE_SECONDS, CallFailedError, Connection, crowd
from tests.support import pids

SIZES = (250, 1000, 4000)
IDLE_SECONDS = 60.0
"""As often the agent looks at the caller of a stream again, which is what it does when idle."""
PUSHES = 3
SCENARIO = "open streams, one a connection"
PUSHED = "a change of the bundle, to all open streams"
MEMORY, DESCRIPTORS = "memory per stream, KiB", "descriptors per stream"
IDLE = "CPU idle, % (one value, of a minute)"
LAST, CPU = "to the last, ms", "CPU per stream, µs"
BUDGETS = {MEMORY: 64.0, DESCRIPTORS: 4.0, IDLE: 1.0}
# Nothing is on its way any more after so long.
QUIET_SECONDS = 0.3
# So many are opened at a time, so that none waits for all the others.
_TOGETHER = 100
# A workload has a few. What the agent has found out about a process serves all its connections.
_OF_A_PROCESS = 10
_MOMENT = struct.Struct("d")


class Streams:
    """Open streams of many processes. It owns these: `close` it."""

    def __init__(self, socket: str) -> None:
        self._socket = socket
        self._size = 0
        self._processes: list[int] = []
        self._moments, self._report = os.pipe()
        self._poll = select.poll()
        self._poll.register(self._moments, select.POLLIN)

    def __len__(self) -> int:
        """How many there are."""
        return self._size

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            pids.kill_and_reap(process)
        os.close(self._moments)
        os.close(self._report)

    def open(self, count: int) -> None:
        """So many more, each on its own connection; wait until each has its message."""
        for opened in range(0, count, _TOGETHER):
            together = min(_TOGETHER, count - opened)
            for begun in range(0, together, _OF_A_PROCESS):
                self._fork(min(_OF_A_PROCESS, together - begun))
            self.gather(together)
        self._size += count

    def gather(self, count: int) -> float:
        """Wait for so many messages; when the last came.

        Raises:
            CallFailedError: a call has failed, or nothing comes any more.
        """
        last = 0.0
        while count > 0:
            moments = self._read(PATIENCE_SECONDS)
            if not moments:
                raise CallFailedError(f"{count} messages have not come")
            count -= len(moments)
            last = max(last, *moments)
        return last

    def quiet(self, seconds: float) -> int:
        """Wait until no message has come for so long; how many there were."""
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
        """What each of the processes does, until it is killed."""

        def note(_connection: Connection, _stream: int, moment: float) -> None:
            os.write(self._report, _MOMENT.pack(moment))

        with crowd(self._socket, count) as connections:
            for connection in connections.connections():
                connection.call(x509())
            connections.gather(sys.maxsize, note, patience=None)


@contextmanager
def streams_of(server: Server) -> Iterator[Streams]:
    """Streams for the block, none at first."""
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
    """What was measured, by measure, size, and server."""

    def __init__(self) -> None:
        self._values: defaultdict[tuple[str, int], dict[str, list[float]]] = defaultdict(dict)

    def note(self, measure: str, held: _Held, value: float) -> None:
        """One more round."""
        self._values[measure, held.size].setdefault(held.server.name, []).append(value)

    def findings(self) -> list[Finding]:
        """All of them, a measure's together."""
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
    """New servers for every size: memory that was given back once is not given again.

    All of them are idle at the same time, since that takes long.
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
