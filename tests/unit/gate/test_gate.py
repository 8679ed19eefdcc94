"""The gate on real sockets: callers, refusals, and what stays after the end."""

from __future__ import annotations

import asyncio
import errno
import os
import select
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent.errors import PeerError, PeerGoneError
from agent.gate import disconnects
from agent.kernel.caller import Caller
from tests.support.running_gate import RunningGate, descriptors, running_gate, until


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[RunningGate]:
    async with running_gate(tmp_path) as running:
        yield running


async def test_a_call_has_the_caller_of_its_connection(running: RunningGate) -> None:
    client, caller = await running.caller()
    assert caller.credentials.pid == os.getpid()
    assert caller.credentials.uid == os.getuid()
    assert caller.process.is_alive()
    client.close()


async def test_each_connection_has_its_own_caller(running: RunningGate) -> None:
    first, caller = await running.caller()
    second, other = await running.caller()
    assert caller is not other
    first.close()
    second.close()


async def test_a_caller_ends_with_its_connection(running: RunningGate) -> None:
    client, caller = await running.caller()
    client.close()
    await until(lambda: len(running.gate) == 0)
    assert not caller.process.is_alive(), "a closed handle counts as dead"
    with pytest.raises(PeerGoneError):
        await running.gate.prove_sender(caller)


async def test_a_caller_that_the_kernel_cannot_name_is_refused_even_without_a_call(
    running: RunningGate,
) -> None:
    def refuse(_sock: socket.socket) -> Caller:
        raise PeerError("cannot be named")

    running.gate.admission.identify_peer = refuse
    _, writer = await running.connect()
    writer.close()
    await until(lambda: bool(running.lines.lines) and len(running.gate) == 0)
    [line] = running.lines.of("connection refused")
    assert line["reason"] == "cannot be named"
    assert "pid" not in line


async def test_the_connection_of_a_dead_process_is_closed_at_once(running: RunningGate) -> None:
    def gone(_sock: socket.socket) -> Caller:
        raise PeerGoneError("exited")

    running.gate.admission.identify_peer = gone
    reader, writer = await running.connect()
    assert await reader.read() == b""
    assert running.lines.of("connection refused")[0]["reason"] == "exited"
    assert running.refusals() == {'vouchd_refusals_total{reason="gone"}': 1}
    writer.close()


async def test_a_connection_over_the_quota_is_closed_and_the_audit_names_its_user(
    tmp_path: Path,
) -> None:
    async with running_gate(tmp_path, per_user=4, refused_seconds=0.0) as running:
        kept = [(await running.caller())[0] for _ in range(2)]
        before = descriptors()
        for _ in range(50):
            reader, writer = await running.connect()
            assert await reader.read() == b""
            writer.close()
            await writer.wait_closed()
        reason = "connections_of_user_in_cgroup"
        assert running.refusals() == {f'vouchd_refusals_total{{reason="{reason}"}}': 50}
        line = running.lines.of("connection refused")[0]
        assert line["uid"] == os.getuid()
        assert "cgroup" in line
        assert line["reason"].startswith("too many connections of this user in this cgroup")
        await until(lambda: descriptors() == before)
        kept.pop().close()
        await until(lambda: len(running.gate) == 1)
        kept.append((await running.caller())[0])
        for client in kept:
            client.close()


async def test_connections_without_a_call_do_not_fill_the_log(running: RunningGate) -> None:
    for _ in range(disconnects.LINES_PER_USER.at_once + 20):
        client = await running.client()
        await client.take()
        client.close()
    await until(lambda: not len(running.gate))
    lines = running.lines.of("connection ended without a call")
    assert len(lines) == disconnects.LINES_PER_USER.at_once


async def test_a_thousand_connections_at_once_leave_no_descriptor(running: RunningGate) -> None:
    before = descriptors()

    async def connect() -> None:
        client, _ = await running.caller()
        client.close()
        await client.writer.wait_closed()

    await asyncio.gather(*(connect() for _ in range(1000)))
    await until(lambda: len(running.gate) == 0)
    await until(lambda: descriptors() <= before)
    assert len(set(running.handlers.callers)) == 1000


async def test_ten_thousand_short_connections_leave_no_descriptor(running: RunningGate) -> None:
    client, _ = await running.caller()
    client.close()
    await until(lambda: len(running.gate) == 0)
    before = descriptors()
    for _ in range(10_000):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.setblocking(False)
        while sock.connect_ex(str(running.path)) != 0:
            await asyncio.sleep(0)
        sock.close()
    await until(lambda: len(running.gate) == 0)
    await until(lambda: descriptors() <= before)


async def test_connections_of_one_process_count_as_one_process(
    running: RunningGate,
) -> None:
    kept = [(await running.caller())[0] for _ in range(3)]
    assert len(running.gate) == 3
    assert running.gate.processes() == 1
    for client in kept:
        client.close()


async def test_a_connection_that_the_poller_cannot_watch_is_closed(
    running: RunningGate, monkeypatch: pytest.MonkeyPatch
) -> None:
    served, _ = await running.caller()
    [connection] = running.connections()
    poller = connection._serving.poller

    class Full:
        """An epoll instance whose user has no watches left (epoll_ctl(2), ENOSPC)."""

        def register(self, _descriptor: int, _events: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    with socket.socket(socket.AF_UNIX) as client:
        epoll = poller._epoll
        assert isinstance(epoll, select.epoll)
        monkeypatch.setattr(poller, "_epoll", Full())
        client.connect(os.fspath(running.path))
        poller_is_full = running.lines.of
        await until(lambda: poller_is_full("cannot accept connections"))
        monkeypatch.setattr(poller, "_epoll", epoll)
        assert client.recv(1) == b""
    assert len(running.gate) == 1
    again, _ = await running.caller()
    for each in (served, again):
        each.close()


async def test_close_ends_all_connections(running: RunningGate) -> None:
    client, _ = await running.caller()
    running.gate.close()
    await client.until_cut()
    assert len(running.gate) == 0


async def test_drain_waits_until_clients_have_closed_all_connections(running: RunningGate) -> None:
    client, _ = await running.caller()
    async with asyncio.TaskGroup() as tasks:
        drained = tasks.create_task(running.gate.drain(30))
        await asyncio.sleep(0)
        assert not drained.done()
        client.close()
    assert len(running.gate) == 0
