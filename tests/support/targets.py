"""Targets of attacks: vouchd, and a naive agent on which each attack must succeed."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from agent.pb import workloadapi_pb2 as pb
from tests.support import pids, raw
from tests.support.agent import SAFETY_SECONDS, RunningAgent

VICTIM = 1001
"""The user with an identity and the trusted program."""
ATTACKER = 1003
"""A user without an identity."""
OTHER = 1002
"""An ordinary user with an identity; the agent must serve it during an attack."""
SOON_SECONDS = 5.0
"""The deadline of a call. A call takes milliseconds; a busy test machine is slower."""

TRUSTED_ID = "spiffe://example.org/trusted"
VICTIM_ID = "spiffe://example.org/user/one"
OTHER_ID = "spiffe://example.org/user/two"
GROUP_ID = "spiffe://example.org/group/only"

_ENTRIES = """
entries:
  - spiffe_id: /user/one
    selectors: [unix:uid:{victim}, unix:gid:{victim}]
  - spiffe_id: /user/two
    selectors: [unix:uid:{other}]
  - spiffe_id: /group/only
    selectors: [unix:supplementary_gid:7001]
  - spiffe_id: /trusted
    selectors: [unix:uid:{victim}, "unix:path:{trusted}"]
"""


class _NaiveProcess(RunningAgent):
    """The naive agent in a process of its own."""

    def _program(self) -> list[str]:
        return ["tests.support.naive", str(self.directory)]

    def close(self) -> None:
        """Kill the agent if it still runs, and remove its directory."""
        self.kill()
        shutil.rmtree(self.directory)


@dataclass
class Tally:
    """The attacks of a whole run, and the attacks that succeeded against each agent."""

    tried: set[str] = field(default_factory=set)
    naive: set[str] = field(default_factory=set)
    vouchd: set[str] = field(default_factory=set)


class Target:
    """An agent under attack. Owns the agent and the directory of the trusted program."""

    def __init__(
        self, *, naive: bool, name: str, tally: Tally, prefix: tuple[str, ...] = ()
    ) -> None:
        self.naive = naive
        self._name = name
        self._tally = tally
        self.programs = Path(tempfile.mkdtemp(prefix="programs-", dir="/tmp"))
        self.programs.chmod(0o755)
        self.trusted = self.programs / "trusted"
        # Netcat copies bytes, so that an attack can send requests through the trusted program.
        shutil.copy("/bin/nc.openbsd", self.trusted)
        self.sockets = self.programs / "sockets"
        self.sockets.mkdir()
        self.sockets.chmod(0o777)
        entries = _ENTRIES.format(victim=VICTIM, other=OTHER, trusted=self.trusted)
        self.agent: RunningAgent = (
            _NaiveProcess(entries, prefix=prefix)
            if naive
            else RunningAgent(entries, config="log: {level: debug}", prefix=prefix)
        )

    @property
    def socket(self) -> str:
        """The path of the public socket."""
        return str(self.agent.socket)

    @property
    def pid(self) -> int:
        """The agent's PID."""
        return self.agent.pid

    def record_result(self, *, succeeded: bool) -> None:
        """Count the attack; it must succeed against the naive agent and fail against vouchd."""
        self._tally.tried.add(self._name)
        if succeeded:
            (self._tally.naive if self.naive else self._tally.vouchd).add(self._name)
        assert succeeded is self.naive, (
            "the attack fails against the naive agent"
            if self.naive
            else f"the attack succeeds against vouchd:\n{self.agent.log}"
        )

    def require_log(self, *words: str) -> None:
        """Require a line of vouchd's log with these words; the naive agent logs nothing."""
        if not self.naive:
            line = self.agent.wait_for_log(words[0])
            assert all(word in line for word in words), line

    def close(self) -> None:
        """Kill the agent: other tests cover a clean stop."""
        self.agent.kill()
        self.agent.close()
        shutil.rmtree(self.programs)


def connect(path: str) -> socket.socket:
    """Connect a socket from the calling process."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.connect(path)
    except OSError:
        sock.close()  # some attacks end the naive agent
        raise
    sock.settimeout(SAFETY_SECONDS)
    return sock


def received_ids(client: raw.RawClient, stream: int | None = None) -> list[str]:
    """Return the SPIFFE IDs in the response to this call, or to a new call."""
    try:
        if stream is None:
            stream = client.call("FetchX509SVID", pb.X509SVIDRequest())
        while not client.calls[stream].messages and client.calls[stream].status is None:
            client.read()
    except (OSError, raw.ConnectionEndedError):
        return []
    messages = client.calls[stream].messages
    return [
        svid.spiffe_id for each in messages for svid in pb.X509SVIDResponse.FromString(each).svids
    ]


def fetch_ids(sock: socket.socket) -> list[str]:
    """Start HTTP/2 on a connected socket, call FetchX509SVID and return the SPIFFE IDs."""
    client = raw.RawClient(sock)
    try:
        client.start()
    except OSError:
        return []
    return received_ids(client)


def reuse(pid: int, uid: int) -> None:
    """Start a process of this user with this free PID; it runs until it is killed."""

    def successor() -> None:
        pids.become(uid)
        os.kill(os.getpid(), signal.SIGSTOP)

    pids.fork_as(pid, successor)
    os.waitpid(pid, os.WUNTRACED)  # the successor stops once it has the UID


def prepared(sock: socket.socket) -> tuple[raw.RawClient, int, bytes]:
    """Prepare a call without sending it; return the client, the stream ID and the bytes."""
    near, far = socket.socketpair()
    with near, far:
        client = raw.RawClient(near)
        client.start()
        stream = client.call("FetchX509SVID", pb.X509SVIDRequest())
        request = far.recv(65536)
    client.sock = sock
    return client, stream, request


def found_by(behave: Callable[[Callable[[list[str]], object]], object]) -> list[str]:
    """Run `behave` in a child; return the SPIFFE IDs of the first report of it or its children.

    The argument of `behave` reports SPIFFE IDs. Without a report the result is empty.
    """
    read, write = os.pipe()
    pid = pids.fork(lambda: behave(lambda ids: os.write(write, f"{' '.join(ids)}\n".encode())))
    os.close(write)
    with os.fdopen(read) as pipe:
        line = pipe.readline()
    pids.kill_and_reap(pid)
    return line.split()


def others_are_served(target: Target, times: int = 5) -> bool:
    """Return whether an ordinary caller gets its identity `times` times within the deadline."""

    def call(report: Callable[[list[str]], object]) -> None:
        pids.become(OTHER)
        sock = connect(target.socket)
        sock.settimeout(SOON_SECONDS)
        report(fetch_ids(sock))

    return all(found_by(call) == [OTHER_ID] for _ in range(times))


@contextmanager
def child_as(uid: int, behave: Callable[[], object]) -> Iterator[int]:
    """Run `behave` in a process of this user for the block; yield its PID."""

    def child() -> None:
        pids.become(uid)
        behave()

    with pids.sleeping_child(child) as pid:
        yield pid


def exec_trusted(target: Target) -> None:
    """Execute the trusted program: it listens on another socket and waits."""
    where = target.sockets / str(os.getpid())
    os.execv(target.trusted, ["trusted", "-l", "-k", "-U", str(where)])  # noqa: S606


@contextmanager
def relayed_through(program: list[str], uid: int = VICTIM) -> Iterator[socket.socket]:
    """Yield a socket; a program (netcat) relays its bytes to the agent and back."""
    near, far = socket.socketpair()
    near.settimeout(SAFETY_SECONDS)
    with near:
        with far:
            running = subprocess.Popen(
                program, stdin=far.fileno(), stdout=far.fileno(), user=uid, group=uid
            )
        try:
            yield near
        finally:
            running.kill()
            running.wait()
