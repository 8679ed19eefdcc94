"""An agent whose sockets the service manager passes."""

from __future__ import annotations

import socket

from tests.support.activated import ActivatedAgent
from tests.support.agent import SAFETY_SECONDS, entry_for_me


def test_an_agent_serves_clients_that_connected_before_its_start() -> None:
    agent = ActivatedAgent(entry_for_me())
    assert agent.stop() == 0
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as early:
        early.connect(str(agent.socket))
        early.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
        agent.start()
        early.settimeout(SAFETY_SECONDS)
        assert early.recv(9)[3:4] == b"\x04", "the server's SETTINGS"
    agent.close()
