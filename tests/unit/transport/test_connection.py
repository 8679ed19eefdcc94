"""One connection: how it comes to be relayed, what passes, and what ends it."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import socket
import weakref
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

from agent.errors import PeerError, PeerGoneError
from agent.gate.gate import Gate
from agent.kernel.caller import Caller
from agent.limits import fair_queue
from agent.transport import connection
from tests.support import pids
from tests.support.fakes import Lines, admission, settle
from tests.support.gate_site import FRAME, Site, descriptors, guarded, listen, until

PREFACE_AND_SETTINGS = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
HEADERS = bytes([0, 0, 1, 1, 4, 0, 0, 0, 1]) + b"\x82"


class Request:
    """What a call holds while it is answered."""


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with guarded(tmp_path) as site:
        yield site


async def test_the_exit_of_the_process_ends_its_connection_though_the_socket_lives_on(
    site: Site,
) -> None:
    # The parent holds a copy of the child's connected socket, so no end-of-file tells of its death.
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connected, ready = os.pipe()

    def child() -> None:
        sock.connect(str(site.path))
        os.write(ready, b"!")
        signal.pause()

    with pids.sleeping_child(child) as pid:
        await asyncio.to_thread(os.read, connected, 1)
        await until(lambda: len(site.gate) == 1)
    assert pid
    await until(lambda: len(site.gate) == 0)
    sock.settimeout(5)
    assert sock.recv(1) == b"", "the holder of the copy sees the end"
    assert site.lines.of("connection ended without a call")[0]["reason"] == "process exited"
    for descriptor in (connected, ready):
        os.close(descriptor)
    sock.close()


async def test_a_refused_peer_is_connected_but_never_named(site: Site) -> None:
    def refuse(_sock: socket.socket) -> Caller:
        raise PeerError("cannot be named")

    site.gate.admission.identify_peer = refuse
    _, writer, name = await site.connected()
    with pytest.raises(PeerError, match="cannot be named"):
        site.gate.begin_call(name)
    writer.close()
    await until(lambda: len(site.gate) == 0)
    assert not site.lines.lines, "its call was refused, and that is told of"


async def test_nothing_is_kept_of_the_calls_of_a_refused_peer(site: Site) -> None:
    def refuse(_sock: socket.socket) -> Caller:
        raise PeerError("cannot be named")

    site.gate.admission.identify_peer = refuse
    _, writer, name = await site.connected()
    kept: list[weakref.ref[Request]] = []

    def call() -> None:
        request = Request()
        kept.append(weakref.ref(request))
        with suppress(PeerError):
            site.gate.begin_call(name)

    for _ in range(10):
        call()
    assert sum(request() is not None for request in kept) <= 1, "the last one at most"
    writer.close()


@pytest.mark.parametrize("said", [b"", PREFACE_AND_SETTINGS], ids=["nothing", "no request"])
async def test_one_who_asks_nothing_is_cut(tmp_path: Path, said: bytes) -> None:
    async with guarded(tmp_path, first_request_seconds=0.01) as site:
        reader, writer = await site.connect()
        writer.write(said)
        assert await reader.read() == said, "it came through, and then there was the end"
        [line] = site.lines.of("connection ended without a call")
        assert line["pid"] == os.getpid()
        assert line["reason"] == "no request within 0.01 s"
        assert site.refusals() == {'vouchd_refusals_total{reason="silent"}': 1}
        writer.close()


async def test_one_who_has_asked_may_be_silent_afterwards(tmp_path: Path) -> None:
    async with guarded(tmp_path, first_request_seconds=0.05) as site:
        reader, writer = await site.connect()
        writer.write(PREFACE_AND_SETTINGS + HEADERS)
        await reader.readexactly(len(PREFACE_AND_SETTINGS + HEADERS))
        await asyncio.sleep(0.1)
        writer.write(FRAME)
        assert await reader.readexactly(len(FRAME)) == FRAME
        writer.close()


async def test_who_hangs_up_while_it_waits_is_forgotten(tmp_path: Path) -> None:
    async with guarded(tmp_path, rate=2) as site:
        before = descriptors()
        for _ in range(100):  # its share is three connects
            _, writer = await site.connect()
            writer.close()
        await until(lambda: len(site.gate) == 0)
        await until(lambda: descriptors() <= before)


def half_a_request(stream: int) -> bytes:
    return bytes([0, 0, 1, 1, 4]) + stream.to_bytes(4, "big") + b"\x82"


def whole_request(stream: int) -> bytes:
    return bytes([0, 0, 1, 1, 5]) + stream.to_bytes(4, "big") + b"\x82"


async def test_calls_with_which_nobody_begins_have_an_end_too(tmp_path: Path) -> None:
    """Half requests are streams of the server's, which it does not count before they are whole."""
    async with guarded(tmp_path, per_user=8) as site:  # 8 streams and 8 attestations
        reader, writer = await site.connect()
        said = PREFACE_AND_SETTINGS + b"".join(map(half_a_request, range(1, 17, 2)))
        writer.write(said)
        assert await reader.readexactly(len(said)) == said
        writer.write(half_a_request(17))
        with suppress(ConnectionError):
            assert await reader.read() == b""
        [line] = site.lines.of("connection refused")
        assert line["reason"].startswith("too many calls of this user in this cgroup")
        assert line["pid"] == os.getpid()
        reason = "calls_of_user_in_cgroup"
        assert site.refusals() == {f'vouchd_refusals_total{{reason="{reason}"}}': 1}
        writer.close()
        # Its end made room for as many.
        reader, writer = await site.connect()
        writer.write(said)
        assert await reader.readexactly(len(said)) == said
        writer.close()


async def test_headers_without_end_are_cut(site: Site) -> None:
    reader, writer = await site.connect()
    writer.write(PREFACE_AND_SETTINGS + bytes([0, 0, 1, 1, 0, 0, 0, 0, 1]) + b"\x82")
    for _ in range(3000):
        writer.write(bytes([0, 0, 0, 9, 0, 0, 0, 0, 1]))
    with suppress(ConnectionError):
        await reader.read()
    [line] = site.lines.of("connection refused")
    assert line["reason"] == "headers of more than 16384 bytes"
    assert line["pid"] == os.getpid()
    assert site.refusals() == {'vouchd_refusals_total{reason="headers"}': 1}
    writer.close()


def data(stream: int, length: int) -> bytes:
    return length.to_bytes(3, "big") + bytes(2) + stream.to_bytes(4, "big") + bytes(length)


async def test_a_call_that_is_too_large_is_cut_and_counted(tmp_path: Path) -> None:
    async with guarded(tmp_path, call_bytes=100) as site:
        reader, writer = await site.connect()
        said = PREFACE_AND_SETTINGS + half_a_request(1) + data(1, 60) + half_a_request(3)
        said += data(3, 60) + data(3, 40)
        writer.write(said)
        assert await reader.readexactly(len(said)) == said, "each of them is small enough"
        writer.write(data(1, 41)[:9])  # more is never waited for
        with suppress(ConnectionError):
            assert await reader.read() == b""
        [line] = site.lines.of("connection refused")
        assert line["reason"] == "a call of more than 100 bytes"
        assert line["pid"] == os.getpid()
        assert site.refusals() == {'vouchd_refusals_total{reason="size"}': 1}
        writer.close()


async def test_who_asks_a_lot_is_heard_at_its_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is lost, and the order stays."""
    monkeypatch.setattr(fair_queue, "PATIENCE_SECONDS", 0.0)
    async with guarded(tmp_path, rate=200) as site:
        reader, writer = await site.connect()
        flood = PREFACE_AND_SETTINGS + HEADERS * 350
        writer.write(flood)
        loop = asyncio.get_running_loop()
        began = loop.time()
        assert await reader.readexactly(len(flood)) == flood
        # 300 at once (a burst of three seconds), then 100 a second of one user in one cgroup.
        assert loop.time() - began > 0.4
        writer.close()


async def test_a_call_that_was_not_counted_does_not_release_the_place_of_one_that_was(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With that of an unknown method the server begins before it has a message."""
    monkeypatch.setattr(fair_queue, "PATIENCE_SECONDS", math.inf)
    one, two = await site.connected(), await site.connected()
    for (reader, writer, _), said in ((one, half_a_request(1)), (two, whole_request(1))):
        writer.write(said)
        assert await reader.readexactly(len(said)) == said
    unknown, counted = one[2], two[2]
    lane = site.gate.admission._fair_queue.lane(site.gate.caller(counted).account)
    next_turn = asyncio.Event()
    assert not lane.pass_or_wait(next_turn.set)
    site.gate.begin_call(unknown)
    await settle()
    assert not next_turn.is_set()
    site.gate.begin_call(counted)
    async with asyncio.timeout(5):
        await next_turn.wait()
    for _, writer, _ in (one, two):
        writer.close()


async def test_the_inner_server_is_waited_for(tmp_path: Path) -> None:
    """A full queue is retried: EAGAIN, unlike on other sockets, means that nothing was begun."""
    busy = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    busy.bind(str(tmp_path / "inner"))
    busy.listen(0)
    fill = [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(3)]
    for sock in fill:
        sock.setblocking(False)
        sock.connect_ex(str(tmp_path / "inner"))
    outer = listen(tmp_path / "outer")
    gate = Gate(asyncio.get_running_loop(), str(tmp_path / "inner"), admission(), Lines().log, 10.0)
    gate.start(outer)
    _, writer = await asyncio.open_unix_connection(tmp_path / "outer")
    await until(lambda: len(gate) == 1)
    accepted: list[socket.socket] = []
    busy.setblocking(False)
    async with asyncio.timeout(5):
        while not any(sock.getpeername() for sock in accepted if sock.getpeername() != ""):
            sock, _ = await asyncio.get_running_loop().sock_accept(busy)
            accepted.append(sock)
    assert len(gate) == 1
    writer.close()
    gate.close()
    for sock in [*fill, *accepted, busy, outer]:
        sock.close()


async def test_an_overloaded_inner_server_ends_the_connection_with_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "INNER_ATTEMPTS", 2)
    lines = Lines()
    outer = listen(tmp_path / "outer")
    busy = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    busy.bind(str(tmp_path / "inner"))
    busy.listen(0)
    fill = [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(3)]
    for sock in fill:
        sock.setblocking(False)
        sock.connect_ex(str(tmp_path / "inner"))
    gate = Gate(
        asyncio.get_running_loop(), str(tmp_path / "inner"), admission(lines=lines), lines.log, 10.0
    )
    gate.start(outer)
    reader, writer = await asyncio.open_unix_connection(tmp_path / "outer")
    assert await reader.read() == b""
    assert lines.lines[0]["reason"].startswith("agent cannot relay")
    writer.close()
    gate.close()
    for sock in [*fill, busy, outer]:
        sock.close()


async def test_no_inner_server_is_one_line_and_no_leak(tmp_path: Path) -> None:
    lines = Lines()
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


async def test_bytes_of_another_process_cut_the_connection_and_are_told_of(site: Site) -> None:
    reader, writer, name = await site.connected()
    child = pids.fork(lambda: os.write(writer.get_extra_info("socket").fileno(), FRAME))
    assert pids.reap(child) == 0
    assert await reader.read() == b"", "nothing of it was passed on"
    [line] = site.lines.of("connection refused")
    assert (line["pid"], line["sender_pid"], line["bytes"]) == (os.getpid(), child, len(FRAME))
    assert (line["uid"], line["sender_uid"]) == (os.getuid(), os.getuid())
    assert site.refusals() == {'vouchd_refusals_total{reason="foreign_sender"}': 1}
    with pytest.raises(PeerError):
        site.gate.caller(name)
    writer.close()


async def test_the_caller_proves_itself_on_its_own_connection(site: Site) -> None:
    reader, writer, name = await site.connected()
    caller = site.gate.caller(name)
    async with asyncio.TaskGroup() as tasks:
        proof = tasks.create_task(site.gate.prove_sender(caller))
        question = await reader.readexactly(17)
        assert not proof.done()
        writer.write(question[:4] + b"\x01" + question[5:])
        await proof
    writer.write(FRAME)
    assert await reader.readexactly(len(FRAME)) == FRAME, "the answer was not passed on"
    writer.close()


async def test_one_who_hangs_up_instead_ends_the_wait(site: Site) -> None:
    reader, writer, name = await site.connected()

    async def hang_up() -> None:
        await reader.readexactly(17)
        writer.close()

    proof = site.gate.prove_sender(site.gate.caller(name))
    async with asyncio.timeout(5):
        outcome, _ = await asyncio.gather(proof, hang_up(), return_exceptions=True)
    assert isinstance(outcome, PeerGoneError)


async def test_after_its_end_nobody_can(site: Site) -> None:
    _, writer, name = await site.connected()
    caller = site.gate.caller(name)
    writer.close()
    await until(lambda: len(site.gate) == 0)
    with pytest.raises(PeerGoneError):
        await site.gate.prove_sender(caller)
