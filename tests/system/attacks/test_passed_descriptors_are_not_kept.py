"""The client passes hundreds of descriptors with each chunk (SCM_RIGHTS).

A process that reads a Unix socket with room for ancillary data receives copies of the descriptors,
and must close each of them. A server that wants the sender's credentials and forgets the rest runs
out of descriptors through one connection. vouchd has room for the credentials alone, so that the
kernel drops the descriptors (MSG_CTRUNC). The naive agent calls recv(2), which takes no
descriptors: the attack shows nothing on it, and is not counted.
"""

from __future__ import annotations

import os
import select
import socket
import struct

import pytest

from tests.conftest import AgentFactory
from tests.support import raw
from tests.support.agent import SAFETY_SECONDS, RunningAgent

# The kernel's limit for one message is 253 (SCM_MAX_FD).
EACH_TIME = 250
CALLS = 20

pytestmark = pytest.mark.system


class Passer(socket.socket):
    """A socket that passes these descriptors with each chunk."""

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
        sock.settimeout(SAFETY_SECONDS)
        client = raw.RawClient(sock)
        with os.fdopen(write, "wb"):
            client.start()
            client.fetch_x509()
            before = _descriptors(agent)
            sock.passed = (write,) * EACH_TIME
            assert all(client.fetch_x509().svids for _ in range(CALLS)), "the calls are served"
        assert _has_no_writer(read), "the agent holds the other end of the pipe"
        assert _descriptors(agent) - before < EACH_TIME
    assert agent.log.count("connection refused") == 0


def _descriptors(agent: RunningAgent) -> int:
    return len(os.listdir(f"/proc/{agent.pid}/fd"))


def _has_no_writer(read: int) -> bool:
    """Return whether all copies of the pipe's other end are closed (POLLHUP)."""
    end = select.poll()
    end.register(read, 0)
    return bool(end.poll(SAFETY_SECONDS * 1000))
