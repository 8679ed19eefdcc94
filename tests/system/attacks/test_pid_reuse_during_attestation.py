"""The kernel reuses a PID between a request and its response.

The attacker connects and sends the request itself, with its own PID. Before the agent reads it (it
is stopped here, as a busy agent is for moments) the attacker exits, and a process of the victim
gets the PID. The credentials of the chunk now have the victim's number, and `/proc` of that number
is the victim's. vouchd accepts a chunk only if the caller is alive after the read, and polls its
pidfd again after all reads of `/proc`.
"""

from __future__ import annotations

import os
import signal
import socket

import pytest

from tests.support import pids
from tests.support.agent import SAFETY_SECONDS
from tests.support.targets import (
    ATTACKER,
    VICTIM,
    VICTIM_ID,
    Target,
    prepared,
    received_ids,
    reuse,
)

pytestmark = pytest.mark.system


def test_pid_reuse_during_attestation(target: Target) -> None:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(SAFETY_SECONDS)
    client, stream, request = prepared(sock)

    def attacker() -> None:
        pids.become(ATTACKER)
        sock.connect(target.socket)
        sock.recv(1, socket.MSG_PEEK)  # the server has sent bytes: the connection was accepted
        os.kill(os.getpid(), signal.SIGSTOP)
        sock.sendall(request)

    pid = pids.fork(attacker)
    os.waitpid(pid, os.WUNTRACED)
    os.kill(target.pid, signal.SIGSTOP)
    os.kill(pid, signal.SIGCONT)
    assert pids.reap(pid) == 0
    reuse(pid, VICTIM)
    os.kill(target.pid, signal.SIGCONT)
    found = received_ids(client, stream)
    pids.kill_and_reap(pid)
    sock.close()
    target.record_result(succeeded=VICTIM_ID in found)
    target.require_log("connection ended without a call", "process exited", f"pid={pid}")
