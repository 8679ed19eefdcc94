"""A PID is reused between a request and the answer to it.

The attacker connects and sends the request itself, so that it carries the right PID. Before the
agent gets to it (it is stopped here, as a busy one is for moments) the attacker exits and a process
of the victim gets that PID. The bytes are stamped with a number that is now the victim's, and
`/proc` of that number is the victim's too. vouchd believes a stamp only if the process that
connected is still alive after the chunk was read, and polls its pidfd again after all that was read
of `/proc`.
"""

from __future__ import annotations

import os
import signal
import socket

import pytest

from tests.support import pids
from tests.support.agent import PATIENCE_SECONDS
from tests.support.targets import (
    ATTACKER,
    VICTIM,
    VICTIM_ID,
    Target,
    loot,
    prepared,
    reuse,
)

pytestmark = pytest.mark.system


def test_pid_reuse_during_attestation(target: Target) -> None:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(PATIENCE_SECONDS)
    client, stream, request = prepared(sock)

    def attacker() -> None:
        pids.become(ATTACKER)
        sock.connect(target.socket)
        sock.recv(1, socket.MSG_PEEK)  # the server has spoken: it was accepted
        os.kill(os.getpid(), signal.SIGSTOP)
        sock.sendall(request)

    pid = pids.fork(attacker)
    os.waitpid(pid, os.WUNTRACED)
    os.kill(target.pid, signal.SIGSTOP)
    os.kill(pid, signal.SIGCONT)
    assert pids.reap(pid) == 0
    reuse(pid, VICTIM)
    os.kill(target.pid, signal.SIGCONT)
    found = loot(client, stream)
    pids.kill_and_reap(pid)
    sock.close()
    target.judge(succeeded=VICTIM_ID in found)
    target.says("connection ended without a call", "process exited", f"pid={pid}")
