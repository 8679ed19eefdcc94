"""The gate against a plain inner server: who is let in, who is found again, what is left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from agent import door as door_module
from agent import gate as gate_module
from agent import turnstile
from agent.admission import REASONS
from agent.errors import PeerError, PeerGoneError
from agent.gate import Gate
from agent.metrics import Metrics, Words
from agent.peer import Caller
from agent.sender import stamp_senders
from tests.support import pids
from tests.support.fakes import Lines, door
from tests.support.scrape import series

# Passes both ways at once: as long as a client's preface, and a whole frame of the server's.
HELLO = bytes([0, 0, 15, 4, 0, 0, 0, 0, 0]) + bytes(15)
FRAME = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])


@dataclass
class Site:
    """A gate in front of an inner server that echoes, and remembers its peers' names."""

    gate: Gate
    outer: socket.socket
    path: Path
    names: list[str]
    lines: Lines
    metrics: Metrics

    def refusals(self) -> dict[str, float]:
        counted = series(self.metrics.text()).items()
        return {name: count for name, count in counted if "refusals" in name and count}

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_unix_connection(self.path)

    async def connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, str]:
        """A connection that has come through, and its name at the inner server."""
        before = len(self.names)
        reader, writer = await self.connect()
        writer.write(HELLO)
        assert await reader.readexactly(len(HELLO)) == HELLO
        return reader, writer, self.names[before]


def listen(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.bind(str(path))
    stamp_senders(sock)
    sock.listen(4096)
    sock.setblocking(False)
    return sock


@asynccontextmanager
async def guarded(
    tmp_path: Path, *, first_request_seconds: float = 10.0, **door_options: Any
) -> AsyncIterator[Site]:
    names: list[str] = []
    echoes: set[asyncio.StreamWriter] = set()

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        name = writer.get_extra_info("peername")  # bytes if abstract, "" if there is none
        names.append("unix-abstract:" + name[1:].decode() if name else "unix:")
        echoes.add(writer)
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
        echoes.discard(writer)
        writer.close()

    server = await asyncio.start_unix_server(echo, tmp_path / "inner")
    outer = listen(tmp_path / "outer")
    lines = Lines()
    metrics = Metrics(Words(limits=REASONS))
    gate = Gate(
        asyncio.get_running_loop(),
        str(tmp_path / "inner"),
        door(**door_options, lines=lines, signals=metrics),
        lines.log,
        first_request_seconds,
        metrics,
    )
    gate.start(outer)
    yield Site(gate, outer, tmp_path / "outer", names, lines, metrics)
    gate.close()
    outer.close()
    for writer in list(echoes):
        writer.close()
    server.close()
    await server.wait_closed()


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with guarded(tmp_path) as site:
        yield site


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def until(condition: object) -> None:
    assert callable(condition)
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


async def test_the_caller_is_found_by_the_name_of_its_inner_connection(site: Site) -> None:
    _reader, writer, name = await site.connected()
    caller = site.gate.caller(name)
    assert caller.credentials.pid == os.getpid()
    assert caller.credentials.uid == os.getuid()
    assert caller.process.is_alive()
    writer.close()


async def test_each_connection_has_a_name_of_its_own(site: Site) -> None:
    _, first, name = await site.connected()
    _, second, other = await site.connected()
    assert name != other
    assert len(name.removeprefix("unix-abstract:")) == 32
    first.close()
    second.close()


async def test_a_name_dies_with_its_connection(site: Site) -> None:
    _, writer, name = await site.connected()
    caller = site.gate.caller(name)
    writer.close()
    await until(lambda: len(site.gate) == 0)
    with pytest.raises(PeerError, match="did not come through the public socket"):
        site.gate.caller(name)
    assert not caller.process.is_alive(), "a closed handle counts as dead"


@pytest.mark.parametrize("name", ["", "unix:", "unix-abstract:", "unix-abstract:" + "0" * 32])
async def test_an_unknown_name_is_nobody(site: Site, name: str) -> None:
    with pytest.raises(PeerError):
        site.gate.caller(name)


async def test_a_direct_connection_to_the_inner_server_is_nobody(
    site: Site, tmp_path: Path
) -> None:
    reader, writer = await asyncio.open_unix_connection(tmp_path / "inner")
    writer.write(b"x")
    await reader.readexactly(1)
    with pytest.raises(PeerError):
        site.gate.caller(site.names[-1])
    writer.close()


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

    site.gate.door.identify_peer = refuse
    _, writer, name = await site.connected()
    with pytest.raises(PeerError, match="cannot be named"):
        site.gate.begin_call(name)
    writer.close()
    await until(lambda: len(site.gate) == 0)
    assert not site.lines.lines, "its call was refused, and that is told of"


async def test_one_who_cannot_be_named_and_asks_nothing_is_refused_all_the_same(
    site: Site,
) -> None:
    def refuse(_sock: socket.socket) -> Caller:
        raise PeerError("cannot be named")

    site.gate.door.identify_peer = refuse
    _, writer = await site.connect()
    writer.close()
    await until(lambda: bool(site.lines.lines) and len(site.gate) == 0)
    [line] = site.lines.of("connection refused")
    assert line["reason"] == "cannot be named"
    assert "pid" not in line


async def test_a_peer_that_is_gone_is_dropped_at_once(site: Site) -> None:
    def gone(_sock: socket.socket) -> Caller:
        raise PeerGoneError("exited")

    site.gate.door.identify_peer = gone
    reader, writer = await site.connect()
    assert await reader.read() == b""
    assert site.lines.of("connection refused")[0]["reason"] == "exited"
    assert site.refusals() == {'vouchd_refusals_total{reason="gone"}': 1}
    writer.close()


PREFACE_AND_SETTINGS = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
HEADERS = bytes([0, 0, 1, 1, 4, 0, 0, 0, 1]) + b"\x82"


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


async def test_one_connection_too_many_is_closed_and_the_log_says_whose(tmp_path: Path) -> None:
    async with guarded(tmp_path, per_user=4) as site:
        kept = [await site.connected() for _ in range(2)]
        before = descriptors()
        for _ in range(50):
            reader, writer = await site.connect()
            assert await reader.read() == b""
            writer.close()
            await writer.wait_closed()
        reason = "connections_of_user_in_cgroup"
        assert site.refusals() == {f'vouchd_refusals_total{{reason="{reason}"}}': 50}
        line = site.lines.of("connection refused")[0]
        assert line["uid"] == os.getuid()
        assert "cgroup" in line
        assert line["reason"].startswith("too many connections of this user in this cgroup")
        await until(lambda: descriptors() == before)
        kept.pop()[1].close()
        await until(lambda: len(site.gate) == 1)
        # Not within the moment in which the same process is refused unseen.
        await asyncio.sleep(door_module.REFUSED_SECONDS)
        kept.append(await site.connected())
        for _, writer, _ in kept:
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


async def test_connections_that_come_to_nothing_do_not_fill_the_log(site: Site) -> None:
    for _ in range(gate_module.UNASKED_AT_ONCE + 20):
        _, writer, _ = await site.connected()
        writer.close()
    await until(lambda: not len(site.gate))
    lines = site.lines.of("connection ended without a call")
    assert len(lines) == gate_module.UNASKED_AT_ONCE


async def test_headers_without_end_are_cut(site: Site) -> None:
    reader, writer = await site.connect()
    writer.write(PREFACE_AND_SETTINGS + bytes([0, 0, 1, 1, 0, 0, 0, 0, 1]) + b"\x82")
    for _ in range(3000):
        writer.write(bytes([0, 0, 0, 9, 0, 0, 0, 0, 1]))
    with suppress(ConnectionError):
        await reader.read()
    [line] = site.lines.of("connection ended without a call")
    assert line["reason"] == "headers of more than 16384 bytes"
    writer.close()


async def test_who_asks_a_lot_is_heard_at_its_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is lost, and the order stays."""
    monkeypatch.setattr(turnstile, "PATIENCE_SECONDS", 0.0)
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
    gate = Gate(asyncio.get_running_loop(), str(tmp_path / "inner"), door(), Lines().log, 10.0)
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
    monkeypatch.setattr(gate_module, "INNER_ATTEMPTS", 2)
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
        asyncio.get_running_loop(), str(tmp_path / "inner"), door(lines=lines), lines.log, 10.0
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
    gate = Gate(asyncio.get_running_loop(), str(tmp_path / "missing"), door(), lines.log, 10.0)
    gate.start(outer)
    reader, writer = await asyncio.open_unix_connection(tmp_path / "outer")
    assert await reader.read() == b""
    [line] = lines.lines
    assert line["reason"].startswith("agent cannot relay")
    writer.close()
    gate.close()
    outer.close()


async def test_a_thousand_at_once(site: Site) -> None:
    before = descriptors()

    async def visit() -> None:
        _, writer, _ = await site.connected()
        writer.close()
        await writer.wait_closed()

    await asyncio.gather(*(visit() for _ in range(1000)))
    await until(lambda: len(site.gate) == 0)
    await until(lambda: descriptors() <= before)
    assert len(set(site.names)) == 1000


async def test_ten_thousand_come_and_go_and_no_descriptor_stays(site: Site) -> None:
    _, writer, _ = await site.connected()
    writer.close()
    await until(lambda: len(site.gate) == 0)
    before = descriptors()
    for _ in range(10_000):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.setblocking(False)
        while sock.connect_ex(str(site.path)) != 0:
            await asyncio.sleep(0)
        sock.close()
    await until(lambda: len(site.gate) == 0)
    await until(lambda: descriptors() <= before)


async def test_close_cuts_everything(site: Site) -> None:
    reader, writer, _ = await site.connected()
    site.gate.close()
    assert await reader.read() == b""
    assert len(site.gate) == 0
    writer.close()


async def test_drain_waits_for_connections_to_end(site: Site) -> None:
    _, writer, _ = await site.connected()
    async with asyncio.TaskGroup() as tasks:
        drained = tasks.create_task(site.gate.drain(30))
        await asyncio.sleep(0)
        assert not drained.done()
        writer.close()
    assert len(site.gate) == 0


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
