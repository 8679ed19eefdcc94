"""The caller is a zombie: dead, and not reaped.

A zombie still has its directory in `/proc`, with its user and its start time, and can be listed by
number like a living process. The attacker sends bytes on its socket. A pidfd polls readable from
the moment when a process exits, reaped or not: vouchd closes the connection then.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

import pytest

from tests.support import pids
from tests.support.agent import SAFETY_SECONDS
from tests.support.targets import ATTACKER, VICTIM, VICTIM_ID, Target, fetch_ids, found_by

pytestmark = pytest.mark.system


def test_zombie_caller(target: Target) -> None:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(SAFETY_SECONDS)

    def victim() -> None:
        pids.become(VICTIM)
        sock.connect(target.socket)
        sock.recv(1, socket.MSG_PEEK)  # the server has sent bytes: the connection was accepted

    def attacker(report: Callable[[list[str]], object]) -> None:
        pids.become(ATTACKER)
        report(fetch_ids(sock))

    pid = pids.fork(victim)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    found = found_by(attacker)
    pids.kill_and_reap(pid)
    sock.close()
    target.record_result(succeeded=VICTIM_ID in found)
    target.require_log("process exited", f"pid={pid}")
