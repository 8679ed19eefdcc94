"""Accepting: in order of arrival, hung-up connections quickly, none lost."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from agent.gate.acceptor import BATCH, BATCHES_PER_TURN, Acceptor
from agent.signals import NoSignals, Refused
from tests.support.agent import SAFETY_SECONDS
from tests.support.fakes import FakeLog


class Refusals(NoSignals):
    """Keeps the reasons of refusals."""

    def __init__(self) -> None:
        self.refused_for: list[str] = []

    def refused(self, reason: str, times: int = 1) -> None:
        self.refused_for += times * [reason]


@dataclass
class Server:
    """Keeps what the admitted connections have sent; while `failure` is set, admission fails."""

    path: Path
    listener: socket.socket
    failure: OSError | None = None
    admitted: list[bytes] = field(default_factory=list)
    signals: Refusals = field(default_factory=Refusals)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    users: list[int] = field(default_factory=list)
    hung_up: int = 0

    def admit(self, sock: socket.socket) -> None:
        with closing(sock):
            self.arrived.set()
            if self.failure is not None:
                raise self.failure
            self.admitted.append(sock.recv(100))

    def connect(self, name: bytes) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.connect(os.fspath(self.path))
        sock.sendall(name)
        return sock

    def hang_up(self, times: int) -> None:
        for _ in range(times):
            self.connect(b"gone").close()

    def note_hung_up(self, uid: int, times: int) -> None:
        self.users.append(uid)
        self.hung_up += times

    def acceptor(self, lines: FakeLog | None = None, **options: Any) -> Acceptor:
        loop, log = asyncio.get_running_loop(), (lines or FakeLog()).log
        acceptor = Acceptor(loop, self.admit, lambda: 7, log, self.signals, **options)
        acceptor.start(self.listener, self.note_hung_up)
        return acceptor

    async def until(self, number: int) -> None:
        while len(self.admitted) < number:
            await asyncio.sleep(0)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    with closing(listener):
        listener.bind(os.fspath(tmp_path / "s"))
        listener.listen(1000)
        yield Server(tmp_path / "s", listener)


async def test_connections_are_admitted_in_order_of_arrival(server: Server) -> None:
    names = [str(number).encode() for number in range(3 * BATCH)]
    clients = [server.connect(name) for name in names]
    acceptor = server.acceptor()
    await server.until(len(names))
    assert server.admitted == names
    acceptor.stop()
    for each in clients:
        each.close()


async def test_a_connection_behind_many_hung_up_ones_is_admitted_within_a_few_turns(
    server: Server,
) -> None:
    server.hang_up(3 * BATCHES_PER_TURN * BATCH)
    with closing(server.connect(b"patient")):
        acceptor = server.acceptor()
        for _ in range(6):  # three turns, and the loop needs one more after each to see the next
            await asyncio.sleep(0)
        assert server.admitted == [b"patient"]
        gone = 3 * BATCHES_PER_TURN * BATCH
        assert server.signals.refused_for == [Refused.GONE] * gone, "the metrics count the flood"
        assert server.hung_up == gone
        assert set(server.users) == {os.geteuid()}
        acceptor.stop()


async def test_each_batch_of_hung_up_connections_samples_another_position(server: Server) -> None:
    """Otherwise a flooder could place another user's connection there, and have it locked out."""
    server.hang_up(BATCHES_PER_TURN * BATCH)
    with closing(server.connect(b"patient")):
        acceptor = server.acceptor(user_of=lambda sock: sock.fileno())
        await server.until(1)
        assert len(server.users) == BATCHES_PER_TURN
        assert len(set(server.users)) == BATCHES_PER_TURN
        acceptor.stop()


async def test_a_flood_of_hung_up_connections_leaves_turns_to_open_connections(
    server: Server,
) -> None:
    server.hang_up(2 * BATCHES_PER_TURN * BATCH)
    with closing(server.connect(b"patient")):
        acceptor = server.acceptor()
        turns = 0
        while not server.admitted:
            await asyncio.sleep(0)
            turns += 1
        assert turns > 2
        acceptor.stop()


async def test_no_waiting_connection_is_lost_while_the_agent_is_out_of_descriptors(
    server: Server,
) -> None:
    lines = FakeLog()
    server.failure = OSError(errno.EMFILE, "Too many open files")
    clients = [server.connect(name) for name in (b"first", b"second", b"third")]
    acceptor = server.acceptor(lines)
    await server.arrived.wait()
    server.failure = None
    await server.until(2)
    assert server.admitted == [b"second", b"third"]  # the first was closed, and may try again
    (line,) = lines.lines
    assert line["event"] == "cannot accept connections"
    assert line["reason"] == "Too many open files"
    assert line["connections"] == 7
    acceptor.stop()
    for each in clients:
        each.close()


async def test_stop_while_out_of_descriptors_closes_waiting_connections(server: Server) -> None:
    server.failure = OSError(errno.EMFILE, "Too many open files")
    clients = [server.connect(name) for name in (b"first", b"second")]
    acceptor = server.acceptor()
    await server.arrived.wait()
    acceptor.stop()
    assert not acceptor.accepts
    for each in clients:
        each.settimeout(SAFETY_SECONDS)
        with pytest.raises(ConnectionResetError):  # it does not wait without end
            each.recv(1)
        each.close()
