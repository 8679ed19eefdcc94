"""The caller passes its connection to a process of another user.

A program of the victim connects and passes the socket (SCM_RIGHTS), because it was tricked, or
because it takes such orders, like launchers and proxies. SO_PEERCRED still names the process that
connected. SO_PASSCRED names the sender: vouchd closes the connection before the first byte passes.
"""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable

import pytest

from tests.support import pids
from tests.support.agent import SAFETY_SECONDS
from tests.support.targets import (
    ATTACKER,
    VICTIM,
    VICTIM_ID,
    Target,
    child_as,
    connect,
    fetch_ids,
    found_by,
)

pytestmark = pytest.mark.system


def test_descriptor_passed(target: Target) -> None:
    near, far = socket.socketpair()

    def victim() -> None:
        sock = connect(target.socket)
        socket.send_fds(near, [b"!"], [sock.fileno()])
        sock.close()
        signal.pause()

    def attacker(report: Callable[[list[str]], object]) -> None:
        pids.become(ATTACKER)
        _, [descriptor], _, _ = socket.recv_fds(far, 1, 1)
        with socket.socket(fileno=descriptor) as sock:
            sock.settimeout(SAFETY_SECONDS)
            report(fetch_ids(sock))

    with near, far, child_as(VICTIM, victim) as pid:
        found = found_by(attacker)
    target.record_result(succeeded=VICTIM_ID in found)
    target.require_log(
        "connection refused", f"pid={pid}", f"uid={VICTIM}", f"sender_uid={ATTACKER}"
    )
