"""A direct connection to the server behind the gate.

An agent with a relay before its gRPC server has a second entrance. The attacker reaches it (here as
the agent's own user; no other user can), and claims a connection by the name that it binds.
vouchd's gate has a table of the connections that it made itself; a name is a key into that table,
not a proof.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

import pytest

from tests.support.agent import SAFETY_SECONDS
from tests.support.targets import VICTIM, VICTIM_ID, Target, child_as, fetch_ids, found_by

pytestmark = pytest.mark.system


def test_inner_socket(target: Target) -> None:
    inner = target.agent.directory / ("inner.sock" if target.naive else "data/inner.sock")
    here, there = socket.socketpair()

    def victim() -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.connect(target.socket)
            sock.recv(1)  # the server has sent bytes: the connection was accepted
            there.send(b"!")
            there.recv(1)

    def attacker(report: Callable[[list[str]], object]) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(SAFETY_SECONDS)
            sock.bind("\0caller-1")
            sock.connect(os.fspath(inner))
            report(fetch_ids(sock))

    with here, there, child_as(VICTIM, victim):
        here.recv(1)
        found = found_by(attacker)
    target.record_result(succeeded=VICTIM_ID in found)
    target.require_log("call refused", "did not come through the public socket")
