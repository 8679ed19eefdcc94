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
from tests.support.agent import PATIENCE_SECONDS, RunningAgent

VICTIM = 1001
"""The user that has an identity, and runs the trusted program."""
ATTACKER = 1003
"""A user without an identity."""
OTHER = 1002
"""An ordinary user with an identity, which must be served meanwhile."""
SOON_SECONDS = 5.0
"""The deadline of a call, which takes milliseconds, on a busy test machine."""

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
        """End it, if it still runs."""
        self.kill()
        shutil.rmtree(self.directory)


@dataclass
class Tally:
    """The attacks of a whole run, and those that succeeded."""

    tried: set[str] = field(default_factory=set)
    naive: set[str] = field(default_factory=set)
    vouchd: set[str] = field(default_factory=set)


class Target:
    """An agent under attack. It owns the agent and the directory of the trusted program."""

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
        self.meeting = self.programs / "sockets"
        self.meeting.mkdir()
        self.meeting.chmod(0o777)
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
        """The agent's process."""
        return self.agent.pid

    def judge(self, *, succeeded: bool) -> None:
        """Count the attack; it must succeed against the naive agent, and only there."""
        self._tally.tried.add(self._name)
        if succeeded:
            (self._tally.naive if self.naive else self._tally.vouchd).add(self._name)
        assert succeeded is self.naive, (
            "the attack attacks nothing" if self.naive else f"vouchd was fooled:\n{self.agent.log}"
        )

    def says(self, *words: str) -> None:
        """Require a line of vouchd's log with these words; the naive agent logs nothing."""
        if not self.naive:
            line = self.agent.wait_for_log(words[0])
            assert all(word in line for word in words), line

    def close(self) -> None:
        """Kill the agent; other tests stop it in order."""
        self.agent.kill()
        self.agent.close()
        shutil.rmtree(self.programs)


def connect(path: str) -> socket.socket:
    """A socket connected by the calling process."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.connect(path)
    except OSError:
        sock.close()  # the naive agent may be down: some attacks end it
        raise
    sock.settimeout(PATIENCE_SECONDS)
    return sock


def loot(client: raw.RawClient, stream: int | None = None) -> list[str]:
    """The SPIFFE IDs in the response of this call, or of a new call."""
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


def speak(sock: socket.socket) -> list[str]:
    """Start HTTP/2 on a connected socket and make a call: the SPIFFE IDs of its response."""
    client = raw.RawClient(sock)
    try:
        client.start()
    except OSError:
        return []
    return loot(client)


def reuse(pid: int, uid: int) -> None:
    """Start a process of that user with this PID, which must be free. It runs until it is
    killed."""

    def successor() -> None:
        pids.become(uid)
        os.kill(os.getpid(), signal.SIGSTOP)

    pids.fork_as(pid, successor)
    os.waitpid(pid, os.WUNTRACED)  # it has become that user


def prepared(sock: socket.socket) -> tuple[raw.RawClient, int, bytes]:
    """A client with a call, the call's stream, and its bytes, which are not yet sent."""
    near, far = socket.socketpair()
    with near, far:
        client = raw.RawClient(near)
        client.start()
        stream = client.call("FetchX509SVID", pb.X509SVIDRequest())
        request = far.recv(65536)
    client.sock = sock
    return client, stream, request


def found_by(behave: Callable[[Callable[[list[str]], object]], object]) -> list[str]:
    """Run `behave` in a child; return the SPIFFE IDs that it or its own children report first.

    Its argument reports. The result is empty if all of them end without a report.
    """
    read, write = os.pipe()
    pid = pids.fork(lambda: behave(lambda ids: os.write(write, f"{' '.join(ids)}\n".encode())))
    os.close(write)
    with os.fdopen(read) as pipe:
        line = pipe.readline()
    pids.kill_and_reap(pid)
    return line.split()


def others_are_served(target: Target, times: int = 5) -> bool:
    """Whether an ordinary caller gets its identity several times, each within the deadline."""

    def call(tell: Callable[[list[str]], object]) -> None:
        pids.become(OTHER)
        sock = connect(target.socket)
        sock.settimeout(SOON_SECONDS)
        tell(speak(sock))

    return all(found_by(call) == [OTHER_ID] for _ in range(times))


@contextmanager
def child_as(uid: int, behave: Callable[[], object]) -> Iterator[int]:
    """A process of that user that runs until the block ends."""

    def child() -> None:
        pids.become(uid)
        behave()

    with pids.sleeping_child(child) as pid:
        yield pid


def exec_trusted(target: Target) -> None:
    """Execute the trusted program, which listens on another socket and waits."""
    where = target.meeting / str(os.getpid())
    os.execv(target.trusted, ["trusted", "-l", "-k", "-U", str(where)])  # noqa: S606


@contextmanager
def talking_through(program: list[str], uid: int = VICTIM) -> Iterator[socket.socket]:
    """A socket whose bytes a program (netcat) copies to the agent and back."""
    near, far = socket.socketpair()
    near.settimeout(PATIENCE_SECONDS)
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
