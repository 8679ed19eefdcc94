"""A forked child sends bytes on its parent's connection.

The child inherits the socket. The parent lives on, so its PID and pidfd are valid; the child may
have other rights and another program. The kernel names the sender of each chunk (SO_PASSCRED):
threads share a PID, children do not.
"""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable

import pytest

from tests.support import pids
from tests.support.agent import SAFETY_SECONDS
from tests.support.targets import ATTACKER, VICTIM, VICTIM_ID, Target, child_as, fetch_ids, found_by

pytestmark = pytest.mark.system


def test_fork_and_write(target: Target) -> None:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(SAFETY_SECONDS)

    def parent() -> None:
        sock.connect(target.socket)
        signal.pause()

    def child(report: Callable[[list[str]], object]) -> None:
        pids.become(ATTACKER)
        sock.recv(1, socket.MSG_PEEK)
        report(fetch_ids(sock))

    with sock, child_as(VICTIM, parent) as pid:
        _until_connected(sock)
        found = found_by(child)
    target.record_result(succeeded=VICTIM_ID in found)
    target.require_log("connection refused", "bytes of another process", f"pid={pid}")


def _until_connected(sock: socket.socket) -> None:
    while True:
        try:
            sock.getpeername()
        except OSError:
            continue
        return
