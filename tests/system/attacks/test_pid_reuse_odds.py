"""The kernel reuses a PID 500 times, at random moments.

The attacker connects, makes its call, and is killed at a random moment. A process of the victim
gets its PID as fast as possible, and an accomplice that holds the socket reads the responses and
sends more requests. The agent may be before accept, between two reads of `/proc`, or about to
respond: it must not take the new process for its caller. The random generator has a fixed seed, so
that a run can be repeated.
"""

from __future__ import annotations

import os
import random
import select
import signal
import socket
from contextlib import suppress

import pytest

from tests.support import pids
from tests.support.targets import ATTACKER, VICTIM, VICTIM_ID, Target, prepared, received_ids, reuse

pytestmark = pytest.mark.system

ROUNDS = 500
# A call takes a few milliseconds from connect to answer.
LATEST_SECONDS = 0.004


def test_pid_reuse_odds(target: Target) -> None:
    moments = random.Random(1)  # noqa: S311 - a repeatable run
    stolen = sum(
        VICTIM_ID in one_round(target, moments.uniform(0, LATEST_SECONDS)) for _ in range(ROUNDS)
    )
    target.record_result(succeeded=stolen > 0)


def one_round(target: Target, moment: float) -> list[str]:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client, stream, request = prepared(sock)
    connected, connecting = os.pipe()

    def attacker() -> None:
        pids.become(ATTACKER)
        sock.connect(target.socket)
        os.close(connecting)
        with suppress(OSError):
            sock.sendall(request)
        signal.pause()

    pid = pids.fork(attacker)
    os.close(connecting)
    os.read(connected, 1)  # ends with connect
    os.close(connected)
    select.select([], [], [], moment)
    pids.kill_and_reap(pid)
    reuse(pid, VICTIM)
    with sock:
        sock.settimeout(1.0)
        found = received_ids(client, stream)
        with suppress(OSError):
            found += received_ids(client)
    pids.kill_and_reap(pid)
    return found
