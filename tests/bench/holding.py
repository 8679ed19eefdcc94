"""Streams that are open: what each takes while nothing happens, and a change that goes to all."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from tests.bench.findings import OURS, Budget, Finding
from tests.bench.servers import Server, all_servers, x509
from tests.bench.wire import Crowd, crowd

SIZES = (250, 1000, 4000)
IDLE_SECONDS = 60.0
"""As often the agent looks at the caller of a stream again, which is what it does when idle."""
PUSHES = 3
SCENARIO = "open streams, one a connection"
PUSHED = "a change of the bundle, to all open streams"
MEMORY, DESCRIPTORS, IDLE = "memory per stream, KiB", "descriptors per stream", "CPU idle, %"
LAST, CPU = "to the last, ms", "CPU per stream, µs"
BUDGETS = {MEMORY: 64.0, DESCRIPTORS: 4.0, IDLE: 1.0}
# Nothing is on its way any more after so long.
QUIET_SECONDS = 0.3
# So many are opened at a time, so that none waits for all the others.
_TOGETHER = 100


@dataclass(frozen=True, slots=True)
class _Held:
    """The open streams of one server."""

    server: Server
    streams: Crowd
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
            _Held(server, stack.enter_context(crowd()), size)
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


def hold(server: Server, streams: Crowd, size: int) -> None:
    """Open so many streams and wait until each has its message."""
    for opened in range(0, size, _TOGETHER):
        together = min(_TOGETHER, size - opened)
        for _ in range(together):
            streams.connect(server.socket).call(x509())
        streams.gather(together)


def _open(held: _Held, values: _Values) -> None:
    server = held.server
    memory, descriptors = server.memory_kib(), server.descriptors()
    hold(server, held.streams, held.size)
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
