"""The caller connects, sends its request, and executes the trusted program before attestation.

The attacker runs as the user that an entry names, with another program. It connects, sends the
request, leaves the connection to a child, and executes the trusted program. Its PID, pidfd and
start time stay, and `/proc/PID/exe` is the trusted program from then on; the child reads the
response. The agent is stopped meanwhile, as a busy agent is for moments. vouchd gives nothing that
rests on the program before the program's own process has answered a new PING. Here the child
answers, and SO_PASSCRED shows it.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable

import pytest

from tests.support import pids
from tests.support.agent import SAFETY_SECONDS
from tests.support.targets import (
    TRUSTED_ID,
    VICTIM,
    Target,
    exec_trusted,
    found_by,
    prepared,
    received_ids,
)

pytestmark = pytest.mark.system


@pytest.mark.parametrize(
    ("silent", "outcome"),
    [
        (True, ["call refused", "did not answer a PING"]),
        (False, ["connection refused", "bytes of another process", f"sender_uid={VICTIM}"]),
    ],
)
def test_exec_swap_request_before(target: Target, outcome: list[str], *, silent: bool) -> None:
    def attacker(report: Callable[[list[str]], object]) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(SAFETY_SECONDS)
        client, stream, request = prepared(sock)
        turn, other_turn = socket.socketpair()
        if os.fork() == 0:
            turn.close()
            other_turn.recv(1)
            os.kill(target.pid, signal.SIGSTOP)
            other_turn.send(b"!")
            other_turn.recv(1)  # ends when exec closes the other end
            os.kill(target.pid, signal.SIGCONT)
            pids.become(VICTIM)
            if silent:  # it only reads, so that no chunk shows another sender
                client.flush = lambda: None  # type: ignore[method-assign]
            report(received_ids(client, stream))
            os._exit(0)
        pids.become(VICTIM)
        sock.connect(target.socket)
        sock.recv(1, socket.MSG_PEEK)  # the server has sent bytes: the connection was accepted
        other_turn.close()
        turn.send(b"!")
        turn.recv(1)
        sock.sendall(request)
        exec_trusted(target)

    found = found_by(attacker)
    target.record_result(succeeded=TRUSTED_ID in found)
    target.require_log(*outcome)
