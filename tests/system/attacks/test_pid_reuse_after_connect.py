"""The kernel reuses a PID after its first owner has connected.

The attacker connects, leaves the socket to an accomplice, and exits. A process of the victim then
gets the attacker's PID (the kernel reuses numbers in a circle; root makes it quick here). The
accomplice makes its call. An agent that remembers the PID of the connection reads `/proc/PID` of
the victim, and gives the victim's identity to the accomplice. In vouchd the connection depends on
the pidfd of the process that connected (SO_PEERPIDFD): it ended with that process.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest

from tests.support import pids
from tests.support.agent import SAFETY_SECONDS
from tests.support.targets import ATTACKER, VICTIM, VICTIM_ID, Target, fetch_ids, found_by, reuse

pytestmark = pytest.mark.system


def test_pid_reuse_after_connect(target: Target) -> None:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(SAFETY_SECONDS)

    def attacker() -> None:
        pids.become(ATTACKER)
        sock.connect(target.socket)
        sock.recv(1, socket.MSG_PEEK)  # the server has sent bytes: the connection was accepted

    pid = pids.fork(attacker)
    assert pids.reap(pid) == 0

    def accomplice(report: Callable[[list[str]], object]) -> None:
        pids.become(ATTACKER)
        report(fetch_ids(sock))

    reuse(pid, VICTIM)
    found = found_by(accomplice)
    pids.kill_and_reap(pid)
    sock.close()
    target.record_result(succeeded=VICTIM_ID in found)
    target.require_log("connection ended without a call", "process exited", f"pid={pid}")
