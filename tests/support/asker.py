"""Control of a workload that runs tests.support.ask, and calls from a child in a cgroup."""

from __future__ import annotations

import json
import os
import socket
import sys
from itertools import count
from typing import TYPE_CHECKING

from tests.support import pids
from tests.support.agent import SAFETY_SECONDS
from tests.support.ask import ask

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.agent import RunningAgent
    from tests.support.cgroups import Directory

_NUMBERS = count()


class Asker:
    """A process that calls FetchX509SVID on the test's command. Owns its control connection.

    Args:
        directory: the agent's directory; the process must be able to reach it.
        start: a function that starts the process from its command line.
    """

    def __init__(self, directory: Path, start: Callable[[list[str]], object]) -> None:
        control = directory / f"ask-{next(_NUMBERS)}.sock"
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.settimeout(SAFETY_SECONDS)
            listener.bind(str(control))
            control.chmod(0o666)
            listener.listen()
            agent = directory / "agent.sock"
            start([sys.executable, "-m", "tests.support.ask", str(agent), str(control)])
            self._sock, _ = listener.accept()
        self._sock.settimeout(SAFETY_SECONDS)
        self._lines = self._sock.makefile("rw")

    def ask(self) -> list[str] | int:
        """Return the SPIFFE IDs of the process, or the gRPC status of the refusal."""
        return self._command("ask")

    def ask_in_child(self) -> list[str] | int:
        """Return the SPIFFE IDs, or the gRPC status, of a child that the process forks."""
        return self._command("fork")

    def close(self) -> None:
        """Close the control connection, which ends the process."""
        self._lines.close()
        self._sock.close()

    def _command(self, word: str) -> list[str] | int:
        self._lines.write(f"{word}\n")
        self._lines.flush()
        line = self._lines.readline()
        assert line, "the workload process has ended"
        answer: list[str] | int = json.loads(line)
        return answer


def ask_from(agent: RunningAgent, place: Directory, uid: int = 0) -> list[str] | int:
    """Return the SPIFFE IDs, or the gRPC status, of a process of this user in this cgroup."""
    read, write = os.pipe()

    def child() -> None:
        place.enter()
        pids.become(uid)
        os.write(write, json.dumps(ask(str(agent.socket))).encode())

    assert pids.reap(pids.fork(child)) == 0
    os.close(write)
    with os.fdopen(read) as pipe:
        answer: list[str] | int = json.loads(pipe.read())
    return answer
