"""Connections of a process that exits, and bytes of another process, with real processes."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from agent.errors import PeerError
from agent.transport.connection import COUNTED_BYTES, Connection, ConnectionTimes
from agent.transport.half import ErrorCode
from agent.transport.http2_server import Http2Server
from tests.support import pids
from tests.support.abuse import (
    DATA,
    END_HEADERS,
    HEADERS,
    PING,
    PREFACE,
    SETTINGS,
    call_headers,
    frame,
)
from tests.support.agent import SAFETY_SECONDS
from tests.support.fakes import settle
from tests.support.h2_engine import H2Engine
from tests.support.running_gate import HALF, RunningGate, running_gate, until


@pytest.fixture(autouse=True, params=[Http2Server, H2Engine])
def half(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run each test over the agent's half, and over the h2 library behind the same Protocol."""
    HALF.make = request.param
    yield
    HALF.make = Http2Server


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


# --- turns, and clients that do not read ----------------------------------------------------------

# The first read of a connection passes; it waits some minutes for the next one.
ONE_READ = 0.01
LARGE = 1 << 20
END_STREAM = 1
GOAWAY, WINDOW_UPDATE = 7, 8
WIDE = LARGE * 512
HELLO = PREFACE + frame(SETTINGS)
HELLO_WITH_WIDE_WINDOWS = (
    PREFACE
    + frame(SETTINGS, 0, 0, struct.pack(">HI", 4, WIDE))
    + frame(WINDOW_UPDATE, 0, 0, WIDE.to_bytes(4, "big"))
)


def request(stream: int, path: str, message: bytes) -> bytes:
    framed = struct.pack(">BI", 0, len(message)) + message
    head = frame(HEADERS, END_HEADERS, stream, call_headers(path=path))
    return head + frame(DATA, END_STREAM, stream, framed)


def connected(running: RunningGate, sent: bytes) -> socket.socket:
    """Return a connected socket. The gate finds `sent` with its first read."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.connect(str(running.path))
    sock.sendall(sent)
    sock.setblocking(False)
    return sock


async def read(sock: socket.socket, size: int) -> bytes:
    """Read at least so many bytes, and fewer only if the agent closes the connection."""
    arrived = b""
    async with asyncio.timeout(SAFETY_SECONDS):
        while len(arrived) < size:
            chunk = await asyncio.get_running_loop().sock_recv(sock, 1 << 16)
            if not chunk:
                break
            arrived += chunk
    return arrived


async def until_closed(sock: socket.socket) -> bytes:
    """Return all that comes until the agent closes the connection."""
    arrived = b""
    while chunk := await read(sock, 1):
        arrived += chunk
    return arrived


def small_buffer(connection: Connection) -> None:
    """Let the kernel hold the least that it can for the client."""
    connection._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)


async def waiting(running: RunningGate, sock: socket.socket, queued: bytes) -> Connection:
    """Return the connection of a socket, once it waits for its turn with `queued` unread."""
    await until(lambda: len(running.gate) == 1)
    [connection] = running.connections()
    sock.send(queued)
    await until(lambda: connection._waits)
    return connection


async def test_a_client_that_reads_gets_its_response_while_its_connection_waits_for_a_turn(
    tmp_path: Path,
) -> None:
    async with running_gate(tmp_path, rate=ONE_READ) as running:
        late = request(1, "/t/Late", str(LARGE).encode())
        sock = connected(running, HELLO_WITH_WIDE_WINDOWS + late)
        await until(lambda: running.handlers.open == 1)
        connection = await waiting(running, sock, frame(PING, 0, 0, bytes(8)))
        running.handlers.stop.set()
        assert len(await read(sock, LARGE)) >= LARGE
        assert connection._waits, "its PING is not read yet"
        sock.close()
        await until(lambda: len(running.gate) == 0)


async def test_the_turn_of_a_client_that_does_not_read_passes(tmp_path: Path) -> None:
    async with running_gate(tmp_path, rate=ONE_READ) as running:
        late = request(1, "/t/Late", str(LARGE).encode())
        sock = connected(running, HELLO_WITH_WIDE_WINDOWS + late)
        await until(lambda: running.handlers.open == 1)
        connection = await waiting(running, sock, frame(PING, 0, 0, bytes(8)))
        running.handlers.stop.set()
        await until(lambda: connection._unsent)
        before = connection._received
        connection._resume()
        assert connection._received == before, "its answers would add to what is unread"
        assert len(await read(sock, LARGE)) >= LARGE
        await until(lambda: connection._waits)
        sock.close()


async def test_the_time_to_read_begins_again_whenever_the_client_reads(
    running: RunningGate,
) -> None:
    sock = connected(running, HELLO_WITH_WIDE_WINDOWS)
    await until(lambda: len(running.gate) == 1)
    [connection] = running.connections()
    small_buffer(connection)
    sock.send(request(1, "/t/Large", str(LARGE).encode()))
    await until(lambda: connection._unsent)
    first, size = connection._unread_timer, len(connection._unsent)
    await read(sock, size // 2)
    await until(lambda: len(connection._unsent) < size)
    assert connection._unsent
    second = connection._unread_timer
    assert first is not None
    assert second is not None
    assert first.cancelled()
    assert not second.cancelled()
    while connection._unsent:
        assert await read(sock, 1)
    assert connection._unread_timer is None, "a client that has read everything has all the time"
    sock.close()


async def test_a_request_that_waits_for_its_turn_is_not_silence(tmp_path: Path) -> None:
    times = ConnectionTimes(first_request=0.01)
    async with running_gate(tmp_path, rate=ONE_READ, times=times) as running:
        sock = connected(running, HELLO)
        connection = await waiting(running, sock, request(1, "/t/Echo", b"x"))
        first = connection._silence
        await until(lambda: connection._silence is not first)  # its time is over
        assert running.connections() == [connection]
        sock.close()


async def test_the_rest_of_a_frame_that_waits_for_its_turn_is_not_missing(tmp_path: Path) -> None:
    times = ConnectionTimes(half_frame=0.01)
    async with running_gate(tmp_path, rate=ONE_READ, times=times) as running:
        ping = frame(PING, 0, 0, bytes(8))
        sock = connected(running, HELLO + ping[:10])
        connection = await waiting(running, sock, ping[10:])
        first = connection._frame_timer
        assert first is not None
        await until(lambda: connection._frame_timer is not first)  # its time is over
        assert running.connections() == [connection]
        sock.close()


async def test_what_the_socket_does_not_take_counts_against_the_quota_of_bytes(
    tmp_path: Path,
) -> None:
    # One output, so that nothing of it waits in the half. One user in one cgroup may hold half.
    size = 50_000
    async with running_gate(tmp_path, buffer_bytes=size) as running:
        sock = connected(running, HELLO_WITH_WIDE_WINDOWS)
        await until(lambda: len(running.gate) == 1)
        small_buffer(running.connections()[0])
        sock.send(request(1, "/t/Large", str(size).encode()))
        await until(lambda: len(running.gate) == 0)
        word = "buffer_bytes_of_user_in_cgroup"
        assert running.refusals() == {f'vouchd_refusals_total{{reason="{word}"}}': 1}
        sock.close()


async def test_the_stop_waits_for_responses_that_the_socket_does_not_take_yet(
    running: RunningGate,
) -> None:
    sock = connected(running, HELLO_WITH_WIDE_WINDOWS)
    await until(lambda: len(running.gate) == 1)
    [connection] = running.connections()
    small_buffer(connection)
    sock.send(request(1, "/t/Large", b"50000"))
    await until(lambda: connection._unsent and not len(connection.calls))
    async with asyncio.timeout(SAFETY_SECONDS), asyncio.TaskGroup() as tasks:
        stopping = tasks.create_task(running.gate.wait_for_calls(2 * SAFETY_SECONDS))
        await settle()
        assert not stopping.done()
        while connection._unsent:
            assert await read(sock, 1)
    sock.close()


async def test_new_connections_are_charged_to_their_lane(tmp_path: Path) -> None:
    async with running_gate(tmp_path, rate=2) as running:
        socks = [connected(running, b"") for _ in range(8)]  # a burst is three requests
        await until(lambda: len(running.gate) == len(socks))
        await settle()
        assert running.connections()[0].admitted.lane._seconds_to_wait() > 0
        for sock in socks:
            sock.close()


async def test_a_quota_that_cuts_a_connection_says_so_to_the_client(tmp_path: Path) -> None:
    async with running_gate(tmp_path, buffer_bytes=4 * COUNTED_BYTES) as running:
        head = frame(HEADERS, END_HEADERS, 1, call_headers(path="/t/Echo"))
        message = struct.pack(">BI", 0, 30_000) + bytes(3 * COUNTED_BYTES)
        sock = connected(running, HELLO + head + frame(DATA, 0, 1, message))
        arrived = await until_closed(sock)
        [line] = running.lines.of("connection refused")
        code = ErrorCode.ENHANCE_YOUR_CALM.to_bytes(4, "big")
        payload = (1).to_bytes(4, "big") + code + line["reason"].encode()
        assert arrived.endswith(frame(GOAWAY, 0, 0, payload))
        assert "too many bytes" in line["reason"]
        sock.close()


async def test_streams_that_share_a_large_response_do_not_exhaust_the_quota(
    tmp_path: Path,
) -> None:
    # One user in one cgroup may hold half of it: two such responses, beside what is on its way.
    async with running_gate(tmp_path, buffer_bytes=6 * LARGE) as running:
        streams = range(1, 17, 2)
        calls = [request(stream, "/t/Shared", str(LARGE).encode()) for stream in streams]
        sock = connected(running, HELLO_WITH_WIDE_WINDOWS + b"".join(calls))
        size = len(streams) * LARGE
        assert len(await read(sock, size)) >= size
        sock.close()


# --- clients that end their side ------------------------------------------------------------------


async def test_a_client_that_sends_nothing_more_gets_the_response_to_its_request(
    running: RunningGate,
) -> None:
    sock = connected(running, HELLO_WITH_WIDE_WINDOWS)
    await until(lambda: len(running.gate) == 1)
    small_buffer(running.connections()[0])
    sock.send(request(1, "/t/Late", b"50000"))
    sock.shutdown(socket.SHUT_WR)
    await until(lambda: running.handlers.open == 1)
    await until(lambda: running.connections()[0]._is_half_closed)
    running.handlers.stop.set()
    assert len(await until_closed(sock)) > 50_000
    assert len(running.gate) == 0
    sock.close()


async def test_a_client_that_closes_its_socket_ends_its_calls(running: RunningGate) -> None:
    sock = connected(running, HELLO + request(1, "/t/Open", b"x"))
    await until(lambda: running.handlers.open == 1)
    sock.shutdown(socket.SHUT_WR)
    [connection] = running.connections()
    await until(lambda: connection._is_half_closed)
    await settle()
    assert running.handlers.open == 1
    sock.close()
    await until(lambda: running.handlers.open == 0 and len(running.gate) == 0)


async def test_a_client_without_a_call_that_sends_nothing_more_is_closed(
    running: RunningGate,
) -> None:
    sock = connected(running, HELLO)
    sock.shutdown(socket.SHUT_WR)
    await until_closed(sock)
    assert len(running.gate) == 0
    sock.close()
