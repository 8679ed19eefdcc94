"""The caller exits before its connection is accepted; another process keeps the socket.

A process of the victim connects and exits at once, like a helper program; the attacker has
inherited the socket. SO_PEERCRED still has the victim's user, and an agent that checks nothing else
serves the attacker as the victim. vouchd polls the caller's pidfd, which is readable at accept: the
caller is dead.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable

import pytest

from tests.support import pids
from tests.support.agent import SAFETY_SECONDS
from tests.support.targets import ATTACKER, VICTIM, VICTIM_ID, Target, fetch_ids, found_by

pytestmark = pytest.mark.system


def test_exited_before_accept(target: Target) -> None:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(SAFETY_SECONDS)

    def victim() -> None:
        pids.become(VICTIM)
        sock.connect(target.socket)

    def attacker(report: Callable[[list[str]], object]) -> None:
        pids.become(ATTACKER)
        report(fetch_ids(sock))

    os.kill(target.pid, signal.SIGSTOP)
    assert pids.reap(pids.fork(victim)) == 0
    os.kill(target.pid, signal.SIGCONT)
    found = found_by(attacker)
    sock.close()
    target.record_result(succeeded=VICTIM_ID in found)
    target.require_log("connection refused", "exited before its connection was accepted")
