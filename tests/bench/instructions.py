"""Instructions of a call, a measure that other load on the machine does not change.

Each server runs under callgrind, a part of valgrind, which counts the instructions of all its
threads. What the kernel does for it is not among them.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeAlias

from tests.bench.calls import KINDS, Calls, settle
from tests.bench.findings import Finding
from tests.bench.holding import PUSHED, QUIET_SECONDS, Streams, streams_of
from tests.bench.servers import Bundle, Server, agent, answers_of, baseline
from tests.bench.wire import Request, connected
from tests.support.agent import RunningAgent

ROUNDS = 3
CALLS = 50
STREAMS, PUSHES = 80, 3
# Warm-up calls: caches are filled and one-time work is done.
_CALLS_BEFORE = 20
TOOLS = ("valgrind", "callgrind_control")
MEASURE, PER_STREAM = "instructions per call", "instructions per stream"
# The values of a server by scenario and measure, one for each round.
_Costs: TypeAlias = dict[tuple[str, str], list[float]]
_Servers: TypeAlias = "Generator[tuple[Counter, Server], None, None]"


class Counter:
    """Counts the instructions of a process that was started with `prefix`."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)
        self.prefix = (
            "valgrind",
            "-q",
            "--tool=callgrind",
            "--instr-atstart=no",
            f"--callgrind-out-file={folder}/counts",
        )

    def begin(self, server: Server) -> None:
        """Switch counting on after the start of the server, which is slow when counted."""
        self._tell(server, "--instr=on")

    def count(self, server: Server, act: Callable[[], object]) -> int:
        """Return the server's instructions during `act`."""
        settle(server)
        self._tell(server, "--zero")
        act()
        settle(server)
        self._tell(server, "--dump")
        [dump] = self._folder.glob("counts.*")
        [total] = re.findall(r"^totals: (\d+)$", dump.read_text(), re.MULTILINE)
        dump.unlink()
        return int(total)

    def _tell(self, server: Server, order: str) -> None:
        command = ["callgrind_control", order, str(server.pid)]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        # callgrind_control exits with 0 even if it does not find the process.
        if done.returncode or "OK." not in done.stdout:
            output = f"{done.stdout}{done.stderr}".strip()
            raise RuntimeError(f"{' '.join(command)}: exit status {done.returncode}: {output}")


def measure(rounds: int = ROUNDS, *, gate_alone: bool = True) -> list[Finding]:
    """Measure each kind of call and a message pushed to a stream."""

    def costs(counter: Counter, server: Server) -> _Costs:
        pushes = {(PUSHED, PER_STREAM): _of_a_push(counter, server)}
        return _of_calls(KINDS, rounds, counter, server) | pushes

    return _findings(_servers(gate_alone=gate_alone), costs)


def measure_calls(kinds: Iterable[Calls], program: type[RunningAgent]) -> list[Finding]:
    """Measure these kinds of calls in one round, with `program` as the agent."""
    return _findings(_servers(program), partial(_of_calls, kinds, 1))


def missing() -> list[str]:
    """Return the required programs that are not installed."""
    return [tool for tool in TOOLS if shutil.which(tool) is None]


def _findings(servers: _Servers, costs: Callable[[Counter, Server], _Costs]) -> list[Finding]:
    values: defaultdict[tuple[str, str], dict[str, list[float]]] = defaultdict(dict)
    with closing(servers):
        for counter, server in servers:
            counter.begin(server)
            for what, several in costs(counter, server).items():
                values[what][server.name] = several
    return [
        Finding(scenario=scenario, measure=measure, size=1, values=by_server, per_one=True)
        for (scenario, measure), by_server in values.items()
    ]


def _servers(program: type[RunningAgent] = RunningAgent, *, gate_alone: bool = False) -> _Servers:
    """Run one after another: the agent, its gate alone, the baseline."""
    with agent() as (plain, _running):
        answers = answers_of(plain.socket)
    with _counter() as counter, agent(program=_counted(program, counter)) as (ours, running):
        yield counter, replace(ours, changes=Bundle(str(running.admin_socket)))
    for gated in (True, False) if gate_alone else (False,):
        with _counter() as counter, baseline(answers, gated=gated, prefix=counter.prefix) as bare:
            yield counter, bare


@contextmanager
def _counter() -> Iterator[Counter]:
    with tempfile.TemporaryDirectory(prefix="vouchd-") as folder:
        yield Counter(folder)


def _counted(program: type[RunningAgent], counter: Counter) -> type[RunningAgent]:
    class Counted(program):  # type: ignore[misc, valid-type]
        """An agent that runs under the counter."""

        def start(self) -> None:
            self._prefix = counter.prefix
            super().start()

    return Counted


def _of_calls(kinds: Iterable[Calls], rounds: int, counter: Counter, server: Server) -> _Costs:
    return {(kind.name, MEASURE): _of_a_call(kind, rounds, counter, server) for kind in kinds}


def _of_a_call(kind: Calls, rounds: int, counter: Counter, server: Server) -> list[float]:
    requests = kind.requests(server)
    with ExitStack() as kept:
        fetch = (
            partial(_connect_and_fetch, server)
            if kind.connects
            else kept.enter_context(connected(server.socket)).fetch
        )

        def several(count: int) -> None:
            for request in islice(requests, count):
                fetch(request)

        several(_CALLS_BEFORE)
        return [counter.count(server, partial(several, CALLS)) / CALLS for _ in range(rounds)]


def _connect_and_fetch(server: Server, request: Request) -> bytes:
    with connected(server.socket) as connection:
        return connection.fetch(request)


def _of_a_push(counter: Counter, server: Server) -> list[float]:
    """Return the instructions per stream of a change that goes to all streams."""
    with streams_of(server) as streams:
        streams.open(STREAMS)
        _push(server, streams)
        _settle(server, streams)
        counts = []
        for _ in range(PUSHES):
            counts.append(counter.count(server, partial(_push, server, streams)) / STREAMS)
            _settle(server, streams)
    return counts


def _push(server: Server, streams: Streams) -> None:
    assert server.changes is not None
    server.changes.begin()
    streams.gather(len(streams))


def _settle(server: Server, streams: Streams) -> None:
    assert server.changes is not None
    server.changes.settle()
    streams.quiet(QUIET_SECONDS)
