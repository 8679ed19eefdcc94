"""The servers of a run: the agent, the baseline, and optionally another running server."""

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

# High limits: the whole load comes from one user.
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
    """A way to make a server send a message to all open streams."""

    def begin(self) -> None:
        """Start the change without waiting for the messages."""
        ...

    def settle(self) -> None:
        """Finish the change, so that `begin` can be called again."""
        ...


class Bundle:
    """Changes of the agent's bundle: the X.509 authority gets a successor.

    Owns a connection to the admin socket from `begin` to `settle`.
    """

    def __init__(self, admin_socket: str) -> None:
        self._admin_socket = admin_socket
        self._admin: Connection | None = None

    def begin(self) -> None:
        """Prepare a successor, like `vouchd authority prepare x509`."""
        self._admin = Connection(self._admin_socket)
        self._admin.call(_authority("PrepareAuthority"))

    def settle(self) -> None:
        """Activate the successor: the agent refuses to prepare a second one."""
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
        """Send SIGUSR1 to the baseline."""
        os.kill(self.pid, signal.SIGUSR1)

    def settle(self) -> None:
        """Do nothing: the baseline has no state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A Workload API server: its process and its Unix socket."""

    name: str
    socket: str
    pid: int
    changes: Changes | None = None

    def cpu_seconds(self) -> float:
        """Return the user and system time of all threads so far.

        What /proc/PID/stat has in hundredths of a second, in nanoseconds: the clock of
        clock_getcpuclockid(3).
        """
        return time.clock_gettime_ns((~self.pid << 3) | 2) / 1e9

    def memory_kib(self) -> int:
        """Return the process's VmRSS (proc(5))."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1])
        raise ProcessLookupError(self.pid)

    def descriptors(self) -> int:
        """Return the number of open descriptors: the size of /proc/PID/fd (proc(5))."""
        return Path(f"/proc/{self.pid}/fd").stat().st_size


def x509() -> Request:
    """Return a FetchX509SVID request."""
    return Request(f"{_SERVICE}/FetchX509SVID", streaming=True)


def jwt(audience: str = AUDIENCE) -> Request:
    """Return a FetchJWTSVID request."""
    message = workloadapi_pb2.JWTSVIDRequest(audience=[audience])
    return Request(f"{_SERVICE}/FetchJWTSVID", message.SerializeToString())


def validation(token: str) -> Request:
    """Return a ValidateJWTSVID request."""
    message = workloadapi_pb2.ValidateJWTSVIDRequest(audience=AUDIENCE, svid=token)
    return Request(f"{_SERVICE}/ValidateJWTSVID", message.SerializeToString())


def token_of(socket: str) -> str:
    """Fetch a JWT-SVID of this process."""
    with connected(socket) as connection:
        message = connection.fetch(jwt())
    return workloadapi_pb2.JWTSVIDResponse.FromString(message).svids[0].svid


def _authority(step: str) -> Request:
    return Request(f"{_ADMIN}/{step}", admin_pb2.KindRequest(kind="x509").SerializeToString())


def other_server(socket: str, pid: int | None = None) -> Server:
    """Return a running server; without `pid`, its process is the creator of the socket.

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
    """Return the error text for a server with a constant CPU clock."""
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
    """Make some calls of the measured kind."""
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
    """Run an agent for the block; the default entry gives this user one identity."""
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
    """Run a bare server for the block, with one response for each method.

    `gated`: behind the agent's gate. `prefix`: a command that executes the server.
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
    """Run a server program for the block and yield its PID once it serves.

    Raises:
        click.ClickException: it does not serve.
    """
    process = subprocess.Popen(
        [*prefix, sys.executable, program, socket, answers],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        start_new_session=True,  # Ctrl-C reaches the benchmark only, which ends the server
    )
    try:
        _require_ready(process, program)
        yield process.pid
    finally:
        process.kill()
        process.communicate()


def _require_ready(process: subprocess.Popen[bytes], program: Path) -> None:
    assert process.stdout is not None
    line = process.stdout.readline()
    if line == _READY:
        return
    with suppress(subprocess.TimeoutExpired):
        process.wait(_MOMENT_SECONDS)  # a crashed process ends by itself
    raise click.ClickException(
        f"{program} did not print its ready line but {line!r}; its exit status is "
        f"{process.poll()}; why is in what it wrote to stderr, above"
    )


@contextmanager
def all_servers(
    other: Server | None = None,
    program: type[RunningAgent] = RunningAgent,
    *,
    gate_alone: bool = False,
) -> Iterator[Sequence[Server]]:
    """Run the agent and a baseline with the agent's responses; add `other`.

    `gate_alone`: also run a baseline behind the agent's gate.
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
    """Return the server's responses to this process, by method."""
    requests = (x509(), jwt(), validation(token_of(socket)))
    with connected(socket) as connection:
        return {each.path.rpartition("/")[2]: connection.fetch(each) for each in requests}
