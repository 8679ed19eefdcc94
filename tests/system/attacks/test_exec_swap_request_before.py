"""The caller connects, sends its request, and becomes another program before it is looked at.

The attacker runs as the user that an entry names, but not the program. It connects and sends the
request, leaves the connection to a child, and executes the trusted program. Its PID, its pidfd and
its start time are all unchanged, and `/proc/PID/exe` is the trusted program from then on: the child
reads the answer. The agent is stopped meanwhile, as a busy one is for moments. vouchd does not give
out what rests on the program before that program's own process has answered a fresh PING; here it
is the child that does, and SO_PASSCRED says so.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable

import pytest

from tests.support import pids
from tests.support.agent import PATIENCE_SECONDS
from tests.support.targets import TRUSTED_ID, VICTIM, Target, exec_trusted, found_by, loot, prepared

pytestmark = pytest.mark.system


@pytest.mark.parametrize(
    ("silent", "outcome"),
    [
        (True, ["call refused", "did not answer a PING"]),
        (False, ["connection refused", "bytes of another process", f"sender_uid={VICTIM}"]),
    ],
)
def test_exec_swap_request_before(target: Target, outcome: list[str], *, silent: bool) -> None:
    def attacker(tell: Callable[[list[str]], object]) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(PATIENCE_SECONDS)
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
            if silent:  # it only reads: nothing of what it might say gives it away
                client.flush = lambda: None  # type: ignore[method-assign]
            tell(loot(client, stream))
            os._exit(0)
        pids.become(VICTIM)
        sock.connect(target.socket)
        sock.recv(1, socket.MSG_PEEK)  # the server has spoken: it was accepted
        other_turn.close()
        turn.send(b"!")
        turn.recv(1)
        sock.sendall(request)
        exec_trusted(target)

    found = found_by(attacker)
    target.judge(succeeded=TRUSTED_ID in found)
    target.says(*outcome)
