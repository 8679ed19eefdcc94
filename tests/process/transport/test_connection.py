"""Connections of a process that exits, and bytes of another process, with real processes."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent.errors import PeerError
from tests.support import pids
from tests.support.abuse import PING, frame
from tests.support.agent import SAFETY_SECONDS
from tests.support.running_gate import RunningGate, running_gate, until


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[RunningGate]:
    async with running_gate(tmp_path) as running:
        yield running


async def test_the_exit_of_the_process_ends_its_connection_while_another_holds_the_socket(
    running: RunningGate,
) -> None:
    # The parent holds a copy of the connected socket, so the exit causes no end of file.
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connected, ready = os.pipe()

    def child() -> None:
        sock.connect(str(running.path))
        os.write(ready, b"!")
        signal.pause()

    with pids.sleeping_child(child) as pid:
        await asyncio.to_thread(os.read, connected, 1)
        await until(lambda: len(running.gate) == 1)
    assert pid
    await until(lambda: len(running.gate) == 0)
    sock.settimeout(SAFETY_SECONDS)
    while sock.recv(4096):  # the agent's SETTINGS; then the holder of the copy sees the end
        pass
    assert running.lines.of("connection ended without a call")[0]["reason"] == "process exited"
    for descriptor in (connected, ready):
        os.close(descriptor)
    sock.close()


async def test_bytes_of_another_process_close_the_connection(
    running: RunningGate,
) -> None:
    client, caller = await running.caller()
    foreign = frame(PING, 0, 0, bytes(8))
    child = pids.fork(lambda: os.write(client.socket.fileno(), foreign))
    assert pids.reap(child) == 0
    await client.until_cut()
    [line] = running.lines.of("connection refused")
    assert (line["pid"], line["sender_pid"], line["bytes"]) == (os.getpid(), child, len(foreign))
    assert (line["uid"], line["sender_uid"]) == (os.getuid(), os.getuid())
    assert running.refusals() == {'vouchd_refusals_total{reason="foreign_sender"}': 1}
    with pytest.raises(PeerError):
        await running.gate.prove_sender(caller)
