"""The relay passes any bytes in any chunks: nothing lost, added, or out of order."""

from __future__ import annotations

import asyncio
import socket

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.transport.relay import Relay, Side
from tests.support.agent import SAFETY_SECONDS
from tests.support.relays import read_from

Chunks = list[bytes]


async def pump(sock: socket.socket, chunks: Chunks) -> None:
    loop = asyncio.get_running_loop()
    for chunk in chunks:
        await loop.sock_sendall(sock, chunk)
    sock.shutdown(socket.SHUT_WR)


async def collect(sock: socket.socket, read_size: int) -> bytes:
    loop = asyncio.get_running_loop()
    data = b""
    while chunk := await loop.sock_recv(sock, read_size):
        data += chunk
    return data


async def exchange(left_says: Chunks, right_says: Chunks, read_size: int) -> tuple[bytes, bytes]:
    left, near_left = socket.socketpair()
    right, near_right = socket.socketpair()
    for sock in (left, right, near_left, near_right):
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2048)
    closed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    Relay(
        asyncio.get_running_loop(),
        Side(near_left, read_from(near_left)),
        Side(near_right, read_from(near_right)),
        lambda reason: closed.set_result(str(reason)),
    ).start()
    with left, right:
        async with asyncio.timeout(SAFETY_SECONDS), asyncio.TaskGroup() as tasks:
            tasks.create_task(pump(left, left_says))
            tasks.create_task(pump(right, right_says))
            got_left = tasks.create_task(collect(left, read_size))
            got_right = tasks.create_task(collect(right, read_size))
        assert await closed == "closed"
    return got_left.result(), got_right.result()


chunks = st.lists(st.binary(min_size=1, max_size=20_000), max_size=8)


@settings(deadline=None, max_examples=60)
@given(left_says=chunks, right_says=chunks, read_size=st.integers(1, 70_000))
def test_bytes_are_preserved_under_any_split(
    left_says: Chunks, right_says: Chunks, read_size: int
) -> None:
    got_left, got_right = asyncio.run(exchange(left_says, right_says, max(read_size, 16)))
    assert got_right == b"".join(left_says)
    assert got_left == b"".join(right_says)
