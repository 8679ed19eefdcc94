"""One connection: its relay, its bounds, and the reasons of its end."""

from __future__ import annotations

import asyncio
import math
import os
import socket
import weakref
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

from agent.errors import PeerError, PeerGoneError
from agent.gate.gate import Gate
from agent.kernel.caller import Caller
from agent.limits.fair_queue import READ_BYTES
from agent.transport.connection import Connection
from tests.support.agent import SAFETY_SECONDS
from tests.support.fakes import FakeLog, admission, settle
from tests.support.running_gate import (
    FRAME,
    HELLO,
    RunningGate,
    descriptors,
    listen,
    running_gate,
    until,
)

PREFACE_AND_SETTINGS = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
HEADERS = bytes([0, 0, 1, 1, 4, 0, 0, 0, 1]) + b"\x82"


class Request:
    """An object that a call holds."""


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[RunningGate]:
    async with running_gate(tmp_path) as running:
        yield running


async def test_calls_of_an_unidentified_caller_are_refused(
    running: RunningGate,
) -> None:
    def refuse(_sock: socket.socket) -> Caller:
        raise PeerError("cannot be named")

    running.gate.admission.identify_peer = refuse
    _, writer, name = await running.connected()
    with pytest.raises(PeerError, match="cannot be named"):
        running.gate.begin_call(name)
    writer.close()
    await until(lambda: len(running.gate) == 0)
    assert not running.lines.lines, "the refused call has its own line"


async def test_refused_calls_of_an_unidentified_caller_use_no_memory(
    running: RunningGate,
) -> None:
    def refuse(_sock: socket.socket) -> Caller:
        raise PeerError("cannot be named")

    running.gate.admission.identify_peer = refuse
    _, writer, name = await running.connected()
    kept: list[weakref.ref[Request]] = []

    def call() -> None:
        request = Request()
        kept.append(weakref.ref(request))
        with suppress(PeerError):
            running.gate.begin_call(name)

    for _ in range(10):
        call()
    assert sum(request() is not None for request in kept) <= 1, "the last one at most"
    writer.close()


@pytest.mark.parametrize("said", [b"", PREFACE_AND_SETTINGS], ids=["nothing", "no request"])
async def test_a_connection_without_a_request_is_closed_after_the_timeout(
    tmp_path: Path, said: bytes
) -> None:
    async with running_gate(tmp_path, first_request_seconds=0.01) as running:
        reader, writer = await running.connect()
        writer.write(said)
        assert await reader.read() == said, "the bytes were relayed until the end"
        [line] = running.lines.of("connection ended without a call")
        assert line["pid"] == os.getpid()
        assert line["reason"] == "no request within 0.01 s"
        assert running.refusals() == {'vouchd_refusals_total{reason="silent"}': 1}
        writer.close()


async def test_a_connection_may_be_silent_after_its_first_request(tmp_path: Path) -> None:
    async with running_gate(tmp_path, first_request_seconds=0.05) as running:
        reader, writer = await running.connect()
        writer.write(PREFACE_AND_SETTINGS + HEADERS)
        await reader.readexactly(len(PREFACE_AND_SETTINGS + HEADERS))
        later, silent = await running.connect()
        assert await later.read() == b"", "the timeout of a later connection is over"
        silent.close()
        writer.write(FRAME)
        assert await reader.readexactly(len(FRAME)) == FRAME
        writer.close()


async def test_a_connection_that_hangs_up_in_the_queue_leaves_no_descriptor(tmp_path: Path) -> None:
    async with running_gate(tmp_path, rate=2) as running:
        before = descriptors()
        for _ in range(100):  # its share is three connects
            _, writer = await running.connect()
            writer.close()
        await until(lambda: len(running.gate) == 0)
        await until(lambda: descriptors() <= before)


def half_a_request(stream: int) -> bytes:
    return bytes([0, 0, 1, 1, 4]) + stream.to_bytes(4, "big") + b"\x82"


def whole_request(stream: int) -> bytes:
    return bytes([0, 0, 1, 1, 5]) + stream.to_bytes(4, "big") + b"\x82"


async def test_half_requests_count_against_the_quota_of_calls(tmp_path: Path) -> None:
    """The server holds a stream for each of them, and counts it only when it is complete."""
    async with running_gate(tmp_path, per_user=8) as running:  # 8 streams and 8 attestations
        reader, writer = await running.connect()
        said = PREFACE_AND_SETTINGS + b"".join(map(half_a_request, range(1, 17, 2)))
        writer.write(said)
        assert await reader.readexactly(len(said)) == said
        writer.write(half_a_request(17))
        with suppress(ConnectionError):
            assert await reader.read() == b""
        [line] = running.lines.of("connection refused")
        assert line["reason"].startswith("too many calls of this user in this cgroup")
        assert line["pid"] == os.getpid()
        reason = "calls_of_user_in_cgroup"
        assert running.refusals() == {f'vouchd_refusals_total{{reason="{reason}"}}': 1}
        writer.close()
        # Its end released the quota.
        reader, writer = await running.connect()
        writer.write(said)
        assert await reader.readexactly(len(said)) == said
        writer.close()


async def test_a_header_block_without_end_closes_the_connection(running: RunningGate) -> None:
    reader, writer = await running.connect()
    writer.write(PREFACE_AND_SETTINGS + bytes([0, 0, 1, 1, 0, 0, 0, 0, 1]) + b"\x82")
    for _ in range(3000):
        writer.write(bytes([0, 0, 0, 9, 0, 0, 0, 0, 1]))
    with suppress(ConnectionError):
        await reader.read()
    [line] = running.lines.of("connection refused")
    assert line["reason"] == "headers of more than 16384 bytes"
    assert line["pid"] == os.getpid()
    assert running.refusals() == {'vouchd_refusals_total{reason="headers"}': 1}
    writer.close()


def data(stream: int, length: int) -> bytes:
    return length.to_bytes(3, "big") + bytes(2) + stream.to_bytes(4, "big") + bytes(length)


async def test_a_call_that_is_too_large_closes_the_connection_and_is_counted(
    tmp_path: Path,
) -> None:
    async with running_gate(tmp_path, call_bytes=100) as running:
        reader, writer = await running.connect()
        said = PREFACE_AND_SETTINGS + half_a_request(1) + data(1, 60) + half_a_request(3)
        said += data(3, 60) + data(3, 40)
        writer.write(said)
        assert await reader.readexactly(len(said)) == said, "each call is small enough"
        writer.write(data(1, 41)[:9])  # the header alone is too much
        with suppress(ConnectionError):
            assert await reader.read() == b""
        [line] = running.lines.of("connection refused")
        assert line["reason"] == "a call of more than 100 bytes"
        assert line["pid"] == os.getpid()
        assert running.refusals() == {'vouchd_refusals_total{reason="size"}': 1}
        writer.close()


async def test_requests_over_the_rate_arrive_in_order(tmp_path: Path) -> None:
    async with running_gate(tmp_path, rate=2000, patience_seconds=0.0) as running:
        reader, writer = await running.connect()
        flood = PREFACE_AND_SETTINGS + HEADERS * 3200  # more than the burst of 3000
        writer.write(flood)
        assert await reader.readexactly(len(flood)) == flood
        writer.close()


async def test_requests_over_the_rate_wait_in_the_socket(tmp_path: Path) -> None:
    async with running_gate(tmp_path, rate=2, patience_seconds=0.0) as running:
        _, writer, token = await running.connected()
        lane = running.gate.admission._fair_queue.lane(running.gate.caller(token).account)
        flood = HEADERS * 3200
        writer.write(flood)
        [connection] = running.gate._connections.values()
        relay = connection._relay
        assert relay is not None
        await until(lambda: relay.outbound.waiting and relay.outbound.bytes > len(HELLO))
        assert relay.outbound.bytes <= len(HELLO) + READ_BYTES
        assert lane._seconds_to_wait(asyncio.get_running_loop().time()) > 1
        writer.close()


async def test_the_start_of_an_uncounted_call_does_not_release_a_counted_one(
    tmp_path: Path,
) -> None:
    """The server begins with a call of an unknown method before it has a message."""
    async with running_gate(tmp_path, patience_seconds=math.inf) as running:
        one, two = await running.connected(), await running.connected()
        for (reader, writer, _), said in ((one, half_a_request(1)), (two, whole_request(1))):
            writer.write(said)
            assert await reader.readexactly(len(said)) == said
        unknown, counted = one[2], two[2]
        lane = running.gate.admission._fair_queue.lane(running.gate.caller(counted).account)
        next_turn = asyncio.Event()
        assert not lane.pass_or_wait(next_turn.set)
        running.gate.begin_call(unknown)
        await settle()
        assert not next_turn.is_set()
        running.gate.begin_call(counted)
        async with asyncio.timeout(SAFETY_SECONDS):
            await next_turn.wait()
        for _, writer, _ in (one, two):
            writer.close()


async def test_the_connect_to_a_busy_inner_server_is_retried(tmp_path: Path) -> None:
    """EAGAIN of a Unix socket means a full queue: the connect did not begin (connect(2))."""
    busy = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    busy.bind(str(tmp_path / "inner"))
    busy.listen(0)
    fill = [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(3)]
    for sock in fill:
        sock.setblocking(False)
        sock.connect_ex(str(tmp_path / "inner"))
    outer = listen(tmp_path / "outer")
    gate = Gate(
        asyncio.get_running_loop(), str(tmp_path / "inner"), admission(), FakeLog().log, 10.0
    )
    gate.start(outer)
    _, writer = await asyncio.open_unix_connection(tmp_path / "outer")
    await until(lambda: len(gate) == 1)
    accepted: list[socket.socket] = []
    busy.setblocking(False)
    async with asyncio.timeout(SAFETY_SECONDS):
        while not any(sock.getpeername() for sock in accepted if sock.getpeername() != ""):
            sock, _ = await asyncio.get_running_loop().sock_accept(busy)
            accepted.append(sock)
    assert len(gate) == 1
    writer.close()
    gate.close()
    for sock in [*fill, *accepted, busy, outer]:
        sock.close()


async def test_a_busy_inner_server_ends_the_connection_after_the_last_retry(tmp_path: Path) -> None:
    busy = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    busy.bind(str(tmp_path / "inner"))
    busy.listen(0)
    fill = [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(3)]
    for sock in fill:
        sock.setblocking(False)
        sock.connect_ex(str(tmp_path / "inner"))
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    loop, admits = asyncio.get_running_loop(), admission()
    admitted = admits.admit(theirs, loop.time())
    assert admitted is not None
    ended: asyncio.Future[str] = loop.create_future()
    connection = Connection(
        loop, theirs, admitted, admits.quotas, math.inf, lambda _, why: ended.set_result(str(why))
    )
    connection.start(str(tmp_path / "inner"), 10.0, attempts=2)
    assert (await ended).startswith("agent cannot relay")
    admits.release(admitted)
    for sock in [*fill, busy, ours]:
        sock.close()


async def test_a_missing_inner_server_is_logged_once_and_leaks_no_descriptor(
    tmp_path: Path,
) -> None:
    lines = FakeLog()
    outer = listen(tmp_path / "outer")
    gate = Gate(asyncio.get_running_loop(), str(tmp_path / "missing"), admission(), lines.log, 10.0)
    gate.start(outer)
    reader, writer = await asyncio.open_unix_connection(tmp_path / "outer")
    assert await reader.read() == b""
    [line] = lines.lines
    assert line["reason"].startswith("agent cannot relay")
    writer.close()
    gate.close()
    outer.close()


async def test_a_caller_that_answers_the_ping_is_proven(running: RunningGate) -> None:
    reader, writer, name = await running.connected()
    caller = running.gate.caller(name)
    async with asyncio.TaskGroup() as tasks:
        proof = tasks.create_task(running.gate.prove_sender(caller))
        question = await reader.readexactly(17)
        assert not proof.done()
        writer.write(question[:4] + b"\x01" + question[5:])
        await proof
    writer.write(FRAME)
    assert await reader.readexactly(len(FRAME)) == FRAME, "the answer did not reach the server"
    writer.close()


async def test_a_caller_that_hangs_up_instead_fails_the_proof(running: RunningGate) -> None:
    reader, writer, name = await running.connected()

    async def hang_up() -> None:
        await reader.readexactly(17)
        writer.close()

    proof = running.gate.prove_sender(running.gate.caller(name))
    async with asyncio.timeout(SAFETY_SECONDS):
        outcome, _ = await asyncio.gather(proof, hang_up(), return_exceptions=True)
    assert isinstance(outcome, PeerGoneError)


async def test_an_ended_connection_cannot_be_proven(running: RunningGate) -> None:
    _, writer, name = await running.connected()
    caller = running.gate.caller(name)
    writer.close()
    await until(lambda: len(running.gate) == 0)
    with pytest.raises(PeerGoneError):
        await running.gate.prove_sender(caller)
