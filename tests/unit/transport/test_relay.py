"""The relay between two sockets: order, half-close, reset, and bounded memory."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from agent.transport.relay import CHUNK_BYTES, Relay, Side, unread_bytes
from tests.support.agent import SAFETY_SECONDS
from tests.support.relays import read_from


@dataclass
class Ends:
    """The far ends of a relayed pair, and the reasons that the relay reported at its end."""

    left: socket.socket
    right: socket.socket
    relay: Relay
    closed: list[str] = field(default_factory=list)


@asynccontextmanager
async def relayed() -> AsyncIterator[Ends]:
    left, near_left = socket.socketpair()
    right, near_right = socket.socketpair()
    for sock in (left, right, near_left, near_right):
        sock.setblocking(False)
    closed: list[str] = []
    loop = asyncio.get_running_loop()
    relay = Relay(
        loop,
        Side(near_left, read_from(near_left)),
        Side(near_right, read_from(near_right)),
        lambda reason: closed.append(str(reason)),
    )
    relay.start()
    try:
        yield Ends(left, right, relay, closed)
    finally:
        relay.close("test ended")
        left.close()
        right.close()


async def receive(sock: socket.socket, size: int) -> bytes:
    loop = asyncio.get_running_loop()
    data = b""
    while len(data) < size and (chunk := await loop.sock_recv(sock, size - len(data))):
        data += chunk
    return data


async def until_closed(ends: Ends) -> None:
    async with asyncio.timeout(SAFETY_SECONDS):
        while not ends.closed:
            await asyncio.sleep(0)


async def test_bytes_pass_both_ways() -> None:
    loop = asyncio.get_running_loop()
    async with relayed() as ends:
        await loop.sock_sendall(ends.left, b"question")
        assert await receive(ends.right, 8) == b"question"
        await loop.sock_sendall(ends.right, b"answer")
        assert await receive(ends.left, 6) == b"answer"


def test_unread_bytes_are_counted_without_reading_them() -> None:
    left, right = socket.socketpair()
    with left, right:
        assert unread_bytes(right) == 0
        left.sendall(b"x" * 300)
        assert unread_bytes(right) == 300
        assert len(right.recv(1000)) == 300
        left.close()
        assert unread_bytes(right) == 0


async def test_megabytes_arrive_in_order() -> None:
    loop = asyncio.get_running_loop()
    payload = bytes(range(256)) * 16384
    async with relayed() as ends, asyncio.TaskGroup() as tasks:
        tasks.create_task(loop.sock_sendall(ends.left, payload))
        assert await receive(ends.right, len(payload)) == payload


async def test_half_close_is_passed_on_and_the_other_way_stays_open() -> None:
    loop = asyncio.get_running_loop()
    async with relayed() as ends:
        await loop.sock_sendall(ends.left, b"last words")
        ends.left.shutdown(socket.SHUT_WR)
        assert await receive(ends.right, 100) == b"last words"
        assert await loop.sock_recv(ends.right, 1) == b""
        await loop.sock_sendall(ends.right, b"still here")
        assert await receive(ends.left, 10) == b"still here"
        assert not ends.closed


async def test_the_relay_ends_when_both_sides_have_ended() -> None:
    async with relayed() as ends:
        ends.left.shutdown(socket.SHUT_WR)
        ends.right.shutdown(socket.SHUT_WR)
        await until_closed(ends)
        assert ends.closed == ["closed"]


async def test_a_reset_closes_the_other_side() -> None:
    loop = asyncio.get_running_loop()
    async with relayed() as ends:
        # Closing a Unix socket with unread data in it resets the peer (unix(7)).
        await loop.sock_sendall(ends.right, b"never read")
        while not ends.relay.inbound.bytes:
            await asyncio.sleep(0)
        ends.left.close()
        await until_closed(ends)
        assert ends.closed[0].startswith("reset")
        assert await receive(ends.right, 1) == b""


async def test_a_peer_that_stops_reading_stops_the_sender_within_bounded_memory() -> None:
    async with relayed() as ends:
        sent = 0
        idle = 0
        # The sender pushes until nothing has moved for many turns of the loop.
        while idle < 200:
            try:
                sent += ends.left.send(b"x" * CHUNK_BYTES)
                idle = 0
            except BlockingIOError:
                idle += 1
            await asyncio.sleep(0)
        taken = ends.relay.outbound.bytes
        assert sent > taken, "the sender's own socket must fill up too"
        in_socket = len(drain(ends.right))
        assert taken - in_socket <= CHUNK_BYTES, "the relay holds at most one chunk"


def drain(sock: socket.socket) -> bytes:
    data = b""
    while True:
        try:
            data += sock.recv(1 << 20)
        except BlockingIOError:
            return data


async def test_all_bytes_arrive_after_back_pressure() -> None:
    loop = asyncio.get_running_loop()
    payload = b"0123456789abcdef" * 131072
    async with relayed() as ends, asyncio.TaskGroup() as tasks:
        tasks.create_task(loop.sock_sendall(ends.left, payload))
        for _ in range(300):
            await asyncio.sleep(0)
        assert ends.relay.outbound.bytes < len(payload)
        assert await receive(ends.right, len(payload)) == payload


async def test_close_is_reported_once() -> None:
    async with relayed() as ends:
        ends.relay.close("first")
        ends.relay.close("second")
        assert ends.closed == ["first"]


@pytest.mark.parametrize("side", ["left", "right"])
async def test_a_dead_reader_ends_the_relay(side: str) -> None:
    loop = asyncio.get_running_loop()
    async with relayed() as ends:
        dead, alive = (ends.left, ends.right) if side == "left" else (ends.right, ends.left)
        dead.close()
        while not ends.closed:
            try:
                await loop.sock_sendall(alive, b"x")
            except OSError:
                break
            await asyncio.sleep(0)
        await until_closed(ends)
