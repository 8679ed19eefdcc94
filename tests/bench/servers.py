"""The servers that take turns: the agent, the baseline, and any other that is running already."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from agent.pb import admin_pb2, workloadapi_pb2
from tests.bench.findings import BASELINE, GATE_ALONE, OURS
from tests.bench.wire import Connection, Request, connected
from tests.support.agent import REPOSITORY, RunningAgent, entry_for_me

OTHER = "other"
AUDIENCE = "bench"
_SERVICE = "/SpiffeWorkloadAPI"
_ADMIN = "/vouchd.admin.v1.Admin"

# One user is all of the load here, so that what protects others from it is out of the way.
CONFIG = """
log: {level: warning}
limits:
  connections: 10000
  connections_per_user: 10000
  streams: 100000
  streams_per_user: 100000
  attestations: 10000
  attestations_per_user: 10000
  requests_per_second: 1000000
"""


class Changes(Protocol):
    """How a server is made to send a message to all open streams."""

    def begin(self) -> None:
        """Do it, and wait for nothing."""
        ...

    def settle(self) -> None:
        """Have everything as it was, so that it can be done again."""
        ...


class Bundle:
    """Changes of the agent's bundle: the X.509 authority gets a successor.

    It owns a connection to the admin socket from `begin` to `settle`.
    """

    def __init__(self, admin_socket: str) -> None:
        self._admin_socket = admin_socket
        self._admin: Connection | None = None

    def begin(self) -> None:
        """`vouchd authority prepare x509`."""
        self._admin = Connection(self._admin_socket)
        self._admin.call(_authority("PrepareAuthority"))

    def settle(self) -> None:
        """`vouchd authority activate x509`, since a second successor is refused."""
        assert self._admin is not None
        with closing(self._admin) as admin:
            while not admin.read():
                pass
            admin.fetch(_authority("ActivateAuthority"))


@dataclass(frozen=True, slots=True)
class Again:
    """The baseline sends the same message again."""

    pid: int

    def begin(self) -> None:
        """Tell it to."""
        os.kill(self.pid, signal.SIGUSR1)

    def settle(self) -> None:
        """Nothing has changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A Workload API server: its process, and the Unix socket it listens on."""

    name: str
    socket: str
    pid: int
    changes: Changes | None = None

    def cpu_seconds(self) -> float:
        """User and system time of all its threads so far.

        What /proc/PID/stat has in hundredths of a second, in nanoseconds: the clock of
        clock_getcpuclockid(3).
        """
        return time.clock_gettime_ns((~self.pid << 3) | 2) / 1e9

    def memory_kib(self) -> int:
        """What it has in memory (proc(5), VmRSS)."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1])
        raise ProcessLookupError(self.pid)

    def descriptors(self) -> int:
        """How many it has open (proc(5): the size of the directory, which anybody may see)."""
        return Path(f"/proc/{self.pid}/fd").stat().st_size


def x509() -> Request:
    """FetchX509SVID."""
    return Request(f"{_SERVICE}/FetchX509SVID", streaming=True)


def jwt(audience: str = AUDIENCE) -> Request:
    """FetchJWTSVID."""
    message = workloadapi_pb2.JWTSVIDRequest(audience=[audience])
    return Request(f"{_SERVICE}/FetchJWTSVID", message.SerializeToString())


def validation(token: str) -> Request:
    """ValidateJWTSVID."""
    message = workloadapi_pb2.ValidateJWTSVIDRequest(audience=AUDIENCE, svid=token)
    return Request(f"{_SERVICE}/ValidateJWTSVID", message.SerializeToString())


def token_of(socket: str) -> str:
    """A JWT-SVID that this process is given there."""
    with connected(socket) as connection:
        message = connection.fetch(jwt())
    return workloadapi_pb2.JWTSVIDResponse.FromString(message).svids[0].svid


def _authority(step: str) -> Request:
    return Request(f"{_ADMIN}/{step}", admin_pb2.KindRequest(kind="x509").SerializeToString())


@contextmanager
def agent(
    entries: str | None = None, program: type[RunningAgent] = RunningAgent
) -> Iterator[tuple[Server, RunningAgent]]:
    """An agent for the block; without entries, this user gets one identity."""
    running = program(entry_for_me() if entries is None else entries, config=CONFIG)
    try:
        yield Server(name=OURS, socket=str(running.socket), pid=running.pid), running
    finally:
        running.close()


@contextmanager
def baseline(
    answers: Mapping[str, bytes], *, gated: bool = False, prefix: Sequence[str] = ()
) -> Iterator[Server]:
    """A bare server for the block that gives these answers, by method.

    `gated`: behind the agent's gate. `prefix`: a command that starts it.
    """
    with tempfile.TemporaryDirectory(prefix="vouchd-", dir="/tmp") as folder:
        socket, files = f"{folder}/s", Path(folder) / "answers"
        files.mkdir()
        for method, answer in answers.items():
            (files / method).write_bytes(answer)
        process = start_baseline(socket, files, gated=gated, prefix=prefix)
        name, changes = GATE_ALONE if gated else BASELINE, Again(process.pid)
        try:
            yield Server(name=name, socket=socket, pid=process.pid, changes=changes)
        finally:
            process.kill()
            process.communicate()


def start_baseline(
    socket: str, answers: Path, *, gated: bool = False, prefix: Sequence[str] = ()
) -> subprocess.Popen[bytes]:
    """Start it and wait until it serves."""
    program = REPOSITORY / "tests/bench/baseline.py"
    process = subprocess.Popen(
        [*prefix, sys.executable, program, socket, answers, *(["gated"] if gated else [])],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    assert process.stdout is not None
    process.stdout.readline()
    return process


@contextmanager
def all_servers(
    other: Server | None = None,
    program: type[RunningAgent] = RunningAgent,
    *,
    gate_alone: bool = False,
) -> Iterator[Sequence[Server]]:
    """The agent, the other if there is one, and a baseline that answers as the agent does.

    `gate_alone`: and one more, which has the agent's gate before it and nothing else of the agent.
    """
    with ExitStack() as stack:
        ours, running = stack.enter_context(agent(program=program))
        ours = replace(ours, changes=Bundle(str(running.admin_socket)))
        answers = answers_of(ours.socket)
        servers = [ours, *([other] if other else [])]
        if gate_alone:
            servers.append(stack.enter_context(baseline(answers, gated=True)))
        yield [*servers, stack.enter_context(baseline(answers))]


def answers_of(socket: str) -> dict[str, bytes]:
    """What this process is answered there, by method."""
    requests = (x509(), jwt(), validation(token_of(socket)))
    with connected(socket) as connection:
        return {each.path.rpartition("/")[2]: connection.fetch(each) for each in requests}
