"""The kernel reuses a PID while a connection waits to be accepted.

The agent is busy; here it is stopped. The attacker connects, leaves the socket to an accomplice and
exits. A process of the victim gets its PID, and then the agent accepts. SO_PEERCRED has the number,
which is now the victim's, and so has a start time that is read now. vouchd gets a pidfd from the
socket (SO_PEERPIDFD), which names the process that connected.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable

import pytest

from tests.support import pids
from tests.support.agent import SAFETY_SECONDS
from tests.support.targets import ATTACKER, VICTIM, VICTIM_ID, Target, fetch_ids, found_by, reuse

pytestmark = pytest.mark.system


def test_pid_reuse_before_accept(target: Target) -> None:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(SAFETY_SECONDS)

    def attacker() -> None:
        pids.become(ATTACKER)
        sock.connect(target.socket)

    def accomplice(report: Callable[[list[str]], object]) -> None:
        pids.become(ATTACKER)
        report(fetch_ids(sock))

    os.kill(target.pid, signal.SIGSTOP)
    pid = pids.fork(attacker)
    assert pids.reap(pid) == 0
    reuse(pid, VICTIM)
    os.kill(target.pid, signal.SIGCONT)
    found = found_by(accomplice)
    pids.kill_and_reap(pid)
    sock.close()
    target.record_result(succeeded=VICTIM_ID in found)
    target.require_log("connection refused", "exited before its connection was accepted")
