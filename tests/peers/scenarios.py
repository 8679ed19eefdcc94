"""The scenarios: each starts its agents, measures them in alternating rounds and ends them."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from agent.pb import workloadapi_pb2
from tests.bench import calls
from tests.bench.holding import QUIET_SECONDS, streams_of
from tests.bench.servers import x509
from tests.bench.wire import Connection
from tests.peers.rows import Result
from tests.peers.services import (
    OURS,
    PEER,
    Agent,
    Entry,
    Service,
    Spire,
    environment,
    me,
    running,
    vouchd,
    write_entries,
)
from tests.support.agent import REPOSITORY

ROUNDS = 9
CALLS = 400
AT_ONCE = 100
PROGRAM_ROUNDS = 5
LARGE_BYTES = 20_000_000
MANY_ENTRIES = 10_000
MANY_CALLS, MANY_ROUNDS = 40, 5
STREAMS = 2000
IDLE_SECONDS = 60.0
"""Our agent's re-attestation interval: the time contains one re-attestation of each caller."""
STARTS = 7
ADDITIONS = 7
_SETTLED_SECONDS = 2.0
_NEVER = "reattest_interval: 24h"
_CALLER = REPOSITORY / "tests/peers/caller.py"
_KINDS = {kind.name: kind for kind in calls.KINDS}
JWT, VALIDATE = _KINDS["FetchJWTSVID, cached"], _KINDS["ValidateJWTSVID"]

Results = Mapping[str, Result]


@dataclass(frozen=True, slots=True)
class Bench:
    """The folder of a run, and the peer's server."""

    folder: Path
    spire: Spire

    def pair(
        self, name: str, entries: Sequence[Entry], *, reads_programs: bool = False
    ) -> tuple[Agent, Agent]:
        """Return our agent and the peer with the same entries."""
        return (
            vouchd(self.folder / f"v-{name}", entries),
            self.spire.agent(self.folder / name, entries, reads_programs=reads_programs),
        )


MINE = Entry(path="/test/me", selectors=[me()])


def one_caller(bench: Bench) -> Results:
    """Calls of one kind, one at a time and a hundred at once."""
    with _both(bench.pair("calls", [MINE])) as servers:
        found = {
            "open": _calls(calls.FETCH, servers),
            "connect": _calls(calls.CONNECT, servers),
            "jwt": _calls(JWT, servers),
            "validate": _calls(VALIDATE, servers),
            "open 100": _calls(calls.FETCH, servers, AT_ONCE),
            "connect 100": _calls(calls.CONNECT, servers, AT_ONCE),
        }
    results = {key: measured[calls.CPU] for key, measured in found.items()}
    late = {f"{key} p50": found[key][calls.P50] for key in ("open 100", "connect 100")}
    return {**results, **late}


def many_entries(bench: Bench) -> Results:
    """Calls among entries that share the caller's user and ask for a group that it lacks."""
    others = [
        Entry(path=f"/other/{n}", selectors=[me(), f"unix:gid:{10**6 + n}"])
        for n in range(MANY_ENTRIES)
    ]
    with _both(bench.pair("many", [MINE, *others])) as servers:
        time.sleep(_SETTLED_SECONDS)  # noqa: TID251 - the peer's synchronisation has no event
        measured = _calls(calls.FETCH, servers, 1, MANY_ROUNDS, MANY_CALLS)
    return {"many entries": measured[calls.CPU]}


def programs(bench: Bench) -> Results:
    """Calls of a small and of a large executable, whose path and digest are evidence."""
    return {
        "small program": _program(bench, "small", 0),
        "large program": _program(bench, "large", LARGE_BYTES),
    }


def idle(bench: Bench) -> Results:
    """Open streams: memory and descriptors; CPU while nothing happens."""
    ours, peer = bench.pair("idle", [MINE])
    quiet = vouchd(bench.folder / "v-quiet", [MINE], _NEVER)
    with ExitStack() as stack:
        services = [stack.enter_context(running(each)) for each in (ours, quiet, peer)]
        held = [stack.enter_context(streams_of(each)) for each in services]
        grown = []
        for service, streams in zip(services, held, strict=True):
            _warm_up(service)
            before = service.memory_kib(), service.descriptors()
            streams.open(STREAMS)
            streams.quiet(QUIET_SECONDS)
            after = service.memory_kib(), service.descriptors()
            grown.append([(b - a) / STREAMS for a, b in zip(before, after, strict=True)])
        attested, silent, theirs = _idle_percent(services)
    return {
        "stream memory": Result(ours=[grown[0][0]], peer=[grown[2][0]]),
        "stream descriptors": Result(ours=[grown[0][1]], peer=[grown[2][1]]),
        "idle": Result(ours=[silent], peer=[theirs]),
        "idle attested": Result(ours=[attested], peer=[theirs]),
    }


def starts(bench: Bench) -> Results:
    """Starts with the data of an earlier start; memory after one call."""
    took: defaultdict[str, list[float]] = defaultdict(list)
    memory: defaultdict[str, list[float]] = defaultdict(list)
    pair = bench.pair("starts", [MINE])
    for agent in pair:  # makes the keys, or joins the server
        with running(agent):
            pass
    for _ in range(STARTS):
        for agent in pair:
            try:
                service, seconds = agent.start()
                time.sleep(_SETTLED_SECONDS)  # noqa: TID251 - what follows a start has no event
                took[agent.name].append(seconds)
                memory[agent.name].append(service.memory_kib() / 1024)
            finally:
                agent.stop()
    return {"start": _result(took), "rest": _result(memory)}


def additions(bench: Bench) -> Results:
    """Entries added while a stream is open. The peer's time contains its command line tool."""
    ours, peer = bench.pair("additions", [MINE])
    took: defaultdict[str, list[float]] = defaultdict(list)
    entries = [MINE]
    with (
        _both([ours, peer]) as (service, other),
        closing(_Watch(service)) as mine,
        closing(_Watch(other)) as theirs,
    ):
        for number in range(ADDITIONS):
            entries.append(Entry(path=f"/test/more/{number}", selectors=[me()]))
            began = write_entries(ours.folder, entries)
            took[OURS].append((mine.has(len(entries)) - began) * 1e3)
            began = time.perf_counter()
            bench.spire.register(peer.folder.name, entries[-1:])
            took[PEER].append((theirs.has(len(entries)) - began) * 1e3)
    return {"entry added": _result(took)}


SCENARIOS: Mapping[str, Callable[[Bench], Results]] = {
    "calls": one_caller,
    "entries": many_entries,
    "programs": programs,
    "streams": idle,
    "start": starts,
    "edit": additions,
}


class _Watch:
    """An open stream. Owns its connection: `close` it."""

    def __init__(self, service: Service) -> None:
        self._connection = Connection(service.socket)
        self._connection.call(x509())
        self.has(1)

    def has(self, identities: int) -> float:
        """Wait for a message with this number of SVIDs; return its moment."""
        while True:
            for _stream, message in self._connection.read():
                svids = workloadapi_pb2.X509SVIDResponse.FromString(message).svids
                if len(svids) == identities:
                    return time.perf_counter()

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


@contextmanager
def _both(pair: Iterable[Agent]) -> Iterator[list[Service]]:
    with ExitStack() as stack:
        yield [stack.enter_context(running(each)) for each in pair]


def _calls(
    kind: calls.Calls,
    servers: Sequence[Service],
    at_once: int = 1,
    rounds: int = ROUNDS,
    count: int = CALLS,
) -> dict[str, Result]:
    findings = calls.measure(kind, servers, at_once, rounds, count)
    return {each.measure: _result(each.values) for each in findings}


def _result(values: Mapping[str, Sequence[float]]) -> Result:
    return Result(ours=values[OURS], peer=values[PEER])


def _warm_up(service: Service) -> None:
    with closing(Connection(service.socket)) as connection:
        connection.fetch(x509())
    calls.settle(service)


def _idle_percent(services: Sequence[Service]) -> list[float]:
    before = [each.cpu_seconds() for each in services]
    began = time.perf_counter()
    time.sleep(IDLE_SECONDS)  # noqa: TID251 - the measured time itself
    lasted = time.perf_counter() - began
    return [
        100 * (each.cpu_seconds() - cpu) / lasted
        for each, cpu in zip(services, before, strict=True)
    ]


def _program(bench: Bench, name: str, size: int) -> Result:
    """Measure calls of a copy of the interpreter, padded to `size` bytes."""
    program = bench.folder / f"program-{name}"
    shutil.copy(Path(sys.executable).resolve(), program)
    with program.open("ab") as file:
        file.write(bytes(max(0, size - file.tell())))
    digest = hashlib.sha256(program.read_bytes()).hexdigest()
    entry = Entry(
        path="/test/program",
        selectors=[me(), f"unix:path:{program}", f"unix:sha256:{digest}"],
    )
    pair = bench.pair(name, [entry, MINE], reads_programs=True)
    values: defaultdict[str, list[float]] = defaultdict(list)
    with _both(pair) as servers:
        callers = [_Caller(program, each) for each in servers]
        try:
            count = CALLS // 10 if size else CALLS
            for number in range(PROGRAM_ROUNDS + 1):
                for caller in callers if number % 2 else reversed(callers):
                    cpu = caller.cpu_of(count)
                    if number:  # the first round warms up
                        values[caller.service.name].append(cpu * 1e6)
        finally:
            for caller in callers:
                caller.close()
    return _result(values)


class _Caller:
    """A process that calls on demand. Owns the process: `close` it."""

    def __init__(self, program: Path, service: Service) -> None:
        self.service = service
        self._process = subprocess.Popen(
            [program, _CALLER, service.socket],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment(),
            text=True,
            bufsize=1,
        )

    def cpu_of(self, count: int) -> float:
        """Let it call `count` times on one connection; return the agent's CPU time of a call."""
        calls.settle(self.service)
        before = self.service.cpu_seconds()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{count}\n")
        answer = self._process.stdout.readline()
        assert re.fullmatch(r"2 SVIDs\n", answer), answer
        calls.settle(self.service)
        return (self.service.cpu_seconds() - before) / count

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()
