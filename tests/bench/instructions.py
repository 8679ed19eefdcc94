"""What a call takes in instructions, which nothing else on the machine changes.

Each server runs under callgrind, a part of valgrind, which counts the instructions of all its
threads. What the kernel does for it is not among them.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from itertools import islice
from pathlib import Path

from tests.bench.calls import CONNECT, FETCH, Calls
from tests.bench.findings import Finding
from tests.bench.servers import Server, agent, answers_of, baseline
from tests.bench.wire import connected
from tests.support.agent import RunningAgent

ROUNDS = 3
CALLS = 100
TOOLS = ("valgrind", "callgrind_control")
MEASURE = "instructions per call"


class Counter:
    """Counts the instructions of the process that is started with `prefix`."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)
        self.prefix = (
            "valgrind",
            "-q",
            "--tool=callgrind",
            "--instr-atstart=no",
            f"--callgrind-out-file={folder}/counts",
        )

    def count(self, server: Server, act: Callable[[], object]) -> int:
        """How many instructions the server takes for what `act` asks of it."""
        self._tell(server, "--instr=on")
        act()
        self._tell(server, "--dump")
        self._tell(server, "--instr=off")
        [dump] = self._folder.glob("counts.*")
        [total] = re.findall(r"^totals: (\d+)$", dump.read_text(), re.MULTILINE)
        dump.unlink()
        return int(total)

    def _tell(self, server: Server, order: str) -> None:
        command = ["callgrind_control", order, str(server.pid)]
        subprocess.run(command, check=True, capture_output=True)


def measure(rounds: int = ROUNDS) -> list[Finding]:
    """Of a call, and of a connection with a call."""
    values: dict[str, defaultdict[str, list[float]]] = {
        kind.name: defaultdict(list) for kind in (FETCH, CONNECT)
    }
    with closing(_servers()) as servers:
        for counter, server in servers:
            for kind in (FETCH, CONNECT):
                _calls(kind, server)  # a first time that does not count
                for _ in range(rounds):
                    count = counter.count(server, partial(_calls, kind, server))
                    values[kind.name][server.name].append(count / CALLS)
    return [
        Finding(scenario=name, measure=MEASURE, size=1, values=by_server, per_one=True)
        for name, by_server in values.items()
    ]


def missing() -> list[str]:
    """The programs that it takes and that are not installed."""
    return [tool for tool in TOOLS if shutil.which(tool) is None]


def _servers() -> Generator[tuple[Counter, Server], None, None]:
    """One after another: the agent, its gate alone, the baseline."""
    with agent() as (plain, _running):
        answers = answers_of(plain.socket)
    with _counter() as counter, agent(program=_counted(counter)) as (ours, _running):
        yield counter, ours
    for gated in (True, False):
        with _counter() as counter, baseline(answers, gated=gated, prefix=counter.prefix) as bare:
            yield counter, bare


@contextmanager
def _counter() -> Iterator[Counter]:
    with tempfile.TemporaryDirectory(prefix="vouchd-") as folder:
        yield Counter(folder)


def _counted(counter: Counter) -> type[RunningAgent]:
    class Counted(RunningAgent):
        """Started by the counter."""

        def start(self) -> None:
            self._prefix = counter.prefix
            super().start()

    return Counted


def _calls(kind: Calls, server: Server) -> None:
    requests = islice(kind.requests(server), CALLS)
    with ExitStack() as kept:
        connection = None if kind.connects else kept.enter_context(connected(server.socket))
        for request in requests:
            with ExitStack() as fresh:
                (connection or fresh.enter_context(connected(server.socket))).fetch(request)
