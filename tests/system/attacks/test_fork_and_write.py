"""A forked child speaks on its parent's connection.

The simplest way for another process to speak: to inherit. The parent goes on living, so that its
PID and its pidfd are in order; the child may have other rights, another program by now. Each chunk
is stamped with its sender (SO_PASSCRED), and threads share a PID while children do not.
"""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable

import pytest

from tests.support import pids
from tests.support.agent import PATIENCE_SECONDS
from tests.support.targets import ATTACKER, VICTIM, VICTIM_ID, Target, child_as, found_by, speak

pytestmark = pytest.mark.system


def test_fork_and_write(target: Target) -> None:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(PATIENCE_SECONDS)

    def parent() -> None:
        sock.connect(target.socket)
        signal.pause()

    def child(tell: Callable[[list[str]], object]) -> None:
        pids.become(ATTACKER)
        sock.recv(1, socket.MSG_PEEK)
        tell(speak(sock))

    with sock, child_as(VICTIM, parent) as pid:
        _until_connected(sock)
        found = found_by(child)
    target.judge(succeeded=VICTIM_ID in found)
    target.says("connection refused", "bytes of another process", f"pid={pid}")


def _until_connected(sock: socket.socket) -> None:
    while True:
        try:
            sock.getpeername()
        except OSError:
            continue
        return
