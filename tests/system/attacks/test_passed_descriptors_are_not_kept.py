"""The client sends descriptors along with its bytes (SCM_RIGHTS), hundreds with each chunk.

Whoever reads a Unix socket with room for ancillary data is given copies of them, and has to close
each: a server that wants only the sender's credentials, and forgets the rest, runs out of its own
descriptors by way of one connection. vouchd leaves room for the credentials and for nothing else,
so that the kernel drops what was passed (MSG_CTRUNC). The naive agent calls recv(2), which takes no
descriptors either: nothing is to be shown on it, and this is not counted among the attacks.
"""

from __future__ import annotations

import os
import select
import socket
import struct

import pytest

from tests.conftest import AgentFactory
from tests.support import raw
from tests.support.agent import PATIENCE_SECONDS, RunningAgent

# The kernel's limit for one message is 253 (SCM_MAX_FD).
EACH_TIME = 250
CALLS = 20

pytestmark = pytest.mark.system


class Passer(socket.socket):
    """A socket that passes these descriptors with whatever it sends."""

    passed: tuple[int, ...] = ()

    def sendall(self, data: bytes, *_flags: int) -> None:  # type: ignore[override]
        packed = struct.pack(f"{len(self.passed)}i", *self.passed)
        control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, packed)] if packed else []
        while data:
            data = data[self.sendmsg([data], control) :]


def test_passed_descriptors_are_not_kept(agent_factory: AgentFactory) -> None:
    agent = agent_factory()
    read, write = os.pipe()
    with os.fdopen(read, "rb"), Passer(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.connect(str(agent.socket))
        sock.settimeout(PATIENCE_SECONDS)
        client = raw.RawClient(sock)
        with os.fdopen(write, "wb"):
            client.start()
            client.fetch_x509()
            before = _descriptors(agent)
            sock.passed = (write,) * EACH_TIME
            assert all(client.fetch_x509().svids for _ in range(CALLS)), "it is served as ever"
        assert _nobody_can_write(read), "the agent has the other end of our pipe"
        assert _descriptors(agent) - before < EACH_TIME
    assert agent.log.count("connection refused") == 0


def _descriptors(agent: RunningAgent) -> int:
    return len(os.listdir(f"/proc/{agent.pid}/fd"))


def _nobody_can_write(read: int) -> bool:
    """Whether a pipe hangs up: the last copy of its other end is closed, or never read."""
    end = select.poll()
    end.register(read, 0)
    return bool(end.poll(PATIENCE_SECONDS * 1000))
