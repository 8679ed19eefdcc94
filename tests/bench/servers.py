"""The servers that take turns: the agent, the baseline, and any other that is running already."""

from __future__ import annotations

import os
import signal
import socket as sockets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import click

from agent.kernel.credentials import read_pid
from agent.pb import admin_pb2, workloadapi_pb2
from tests.bench.findings import BASELINE, GATE_ALONE, OURS, RefusedError
from tests.bench.wire import CallFailedError, Connection, Request, connected
from tests.support.agent import REPOSITORY, RunningAgent, entry_for_me

OTHER = "other"
AUDIENCE = "bench"
BASELINE_PROGRAM = REPOSITORY / "tests/bench/baseline.py"
GATED_PROGRAM = REPOSITORY / "tests/bench/gated.py"
_READY = b"ready\n"
_MOMENT_SECONDS = 2.0
_TRIES = 20
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


def other_server(socket: str, pid: int | None = None) -> Server:
    """One that is running already; without `pid`, its process is the one that made the socket.

    Raises:
        RefusedError: it cannot be measured.
    """
    listener = _listener(socket)
    if not (pid or listener):
        raise RefusedError(f"cannot find the process that listens on {socket}: give its --pid")
    server = Server(name=OTHER, socket=socket, pid=pid or listener)
    try:
        server.memory_kib()
        before = server.cpu_seconds()
    except OSError:
        raise click.UsageError(f"--pid: there is no process {server.pid} with a memory") from None
    _try(socket)
    if server.cpu_seconds() <= before:
        raise RefusedError(still(server))
    return server


def still(server: Server) -> str:
    """What is wrong with one whose CPU clock does not move."""
    return (
        f"the process {server.pid} took no CPU time during calls of {server.socket}, "
        "so that it is another that serves there: name that with --pid"
    )


def _listener(socket: str) -> int:
    try:
        with sockets.socket(sockets.AF_UNIX) as sock:
            sock.connect(socket)
            return read_pid(sock)
    except OSError as error:
        raise RefusedError(f"--agent-socket: no process listens on {socket}: {error}") from None


def _try(socket: str) -> None:
    """Some calls, as those that will be measured."""
    try:
        for _ in range(_TRIES):
            with connected(socket) as connection:
                connection.fetch(x509())
    except (OSError, CallFailedError) as error:
        raise RefusedError(
            f"--agent-socket: {socket} gives this process no X509-SVID: {error}"
        ) from None


@contextmanager
def agent(
    entries: str | None = None, program: type[RunningAgent] = RunningAgent
) -> Iterator[tuple[Server, RunningAgent]]:
    """An agent for the block; without entries, this user gets one identity."""
    text = entry_for_me() if entries is None else entries
    running = program(text, config=CONFIG, new_session=True)
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
        program = GATED_PROGRAM if gated else BASELINE_PROGRAM
        with started(socket, files, program, prefix) as pid:
            name = GATE_ALONE if gated else BASELINE
            yield Server(name=name, socket=socket, pid=pid, changes=Again(pid))


@contextmanager
def started(
    socket: str, answers: Path, program: Path = BASELINE_PROGRAM, prefix: Sequence[str] = ()
) -> Iterator[int]:
    """The process of such a program for the block, which begins once it serves.

    Raises:
        click.ClickException: it does not serve.
    """
    process = subprocess.Popen(
        [*prefix, sys.executable, program, socket, answers],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        start_new_session=True,  # Ctrl-C is for the bench, which then ends it
    )
    try:
        _require_ready(process, program)
        yield process.pid
    finally:
        process.kill()
        process.communicate()


def _require_ready(process: subprocess.Popen[bytes], program: Path) -> None:
    assert process.stdout is not None
    said = process.stdout.readline()
    if said == _READY:
        return
    with suppress(subprocess.TimeoutExpired):
        process.wait(_MOMENT_SECONDS)  # one that crashed is about to end by itself
    raise click.ClickException(
        f"{program} did not say that it is ready but {said!r}, and its exit status is "
        f"{process.poll()}; why is in what it wrote to stderr, above"
    )


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
