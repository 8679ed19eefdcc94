"""How connections are accepted: in their order, those that are worth nothing quickly, none lost."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from agent.gate import acceptor as acceptor_module
from agent.gate.acceptor import BATCH, BATCHES_PER_TURN, Acceptor
from agent.signals import Refused, Unheard
from tests.support.fakes import Lines


class Heard(Unheard):
    """Signals that remember who was refused, and why."""

    def __init__(self) -> None:
        self.refused_for: list[str] = []

    def refused(self, reason: str, times: int = 1) -> None:
        self.refused_for += times * [reason]


@dataclass
class Hall:
    """Who was admitted, by what they had sent; whoever comes is refused while `failure` is set."""

    path: Path
    listener: socket.socket
    failure: OSError | None = None
    admitted: list[bytes] = field(default_factory=list)
    signals: Heard = field(default_factory=Heard)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    users: list[int] = field(default_factory=list)
    hung_up: int = 0

    def admit(self, sock: socket.socket) -> None:
        with closing(sock):
            self.arrived.set()
            if self.failure is not None:
                raise self.failure
            self.admitted.append(sock.recv(100))

    def visit(self, name: bytes) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.connect(os.fspath(self.path))
        sock.sendall(name)
        return sock

    def hang_up(self, times: int) -> None:
        for _ in range(times):
            self.visit(b"gone").close()

    def note_hung_up(self, uid: int, times: int) -> None:
        self.users.append(uid)
        self.hung_up += times

    def acceptor(self, lines: Lines | None = None) -> Acceptor:
        acceptor = Acceptor(
            asyncio.get_running_loop(), self.admit, lambda: 7, (lines or Lines()).log, self.signals
        )
        acceptor.start(self.listener, self.note_hung_up)
        return acceptor

    async def until(self, number: int) -> None:
        while len(self.admitted) < number:
            await asyncio.sleep(0)


@pytest.fixture
def hall(tmp_path: Path) -> Iterator[Hall]:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    with closing(listener):
        listener.bind(os.fspath(tmp_path / "s"))
        listener.listen(1000)
        yield Hall(tmp_path / "s", listener)


async def test_they_are_admitted_in_their_order(hall: Hall) -> None:
    names = [str(number).encode() for number in range(3 * BATCH)]
    visitors = [hall.visit(name) for name in names]
    acceptor = hall.acceptor()
    await hall.until(len(names))
    assert hall.admitted == names
    acceptor.stop()
    for each in visitors:
        each.close()


async def test_one_behind_many_who_hung_up_is_admitted_within_a_few_turns(hall: Hall) -> None:
    hall.hang_up(3 * BATCHES_PER_TURN * BATCH)
    with closing(hall.visit(b"patient")):
        acceptor = hall.acceptor()
        for _ in range(6):  # a turn each, and what the loop takes to see that there are more
            await asyncio.sleep(0)
        assert hall.admitted == [b"patient"]
        gone = 3 * BATCHES_PER_TURN * BATCH
        assert hall.signals.refused_for == [Refused.GONE] * gone, "a flood of them is seen"
        assert hall.hung_up == gone
        assert set(hall.users) == {os.geteuid()}
        acceptor.stop()


async def test_of_many_who_hung_up_another_stands_for_all_each_time(
    hall: Hall, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a flooder who sees to it that another user's is the first has that one locked out."""
    monkeypatch.setattr(acceptor_module, "read_user", lambda sock: sock.fileno())
    hall.hang_up(BATCHES_PER_TURN * BATCH)
    with closing(hall.visit(b"patient")):
        acceptor = hall.acceptor()
        await hall.until(1)
        assert len(hall.users) == BATCHES_PER_TURN
        assert len(set(hall.users)) == BATCHES_PER_TURN
        acceptor.stop()


async def test_many_who_hung_up_do_not_keep_others_from_their_turn(hall: Hall) -> None:
    hall.hang_up(2 * BATCHES_PER_TURN * BATCH)
    with closing(hall.visit(b"patient")):
        acceptor = hall.acceptor()
        turns = 0
        while not hall.admitted:
            await asyncio.sleep(0)
            turns += 1
        assert turns > 2
        acceptor.stop()


async def test_nobody_is_lost_while_the_agent_is_out_of_descriptors(hall: Hall) -> None:
    lines = Lines()
    hall.failure = OSError(errno.EMFILE, "Too many open files")
    visitors = [hall.visit(name) for name in (b"first", b"second", b"third")]
    acceptor = hall.acceptor(lines)
    await hall.arrived.wait()
    hall.failure = None
    await hall.until(2)
    assert hall.admitted == [b"second", b"third"]  # the first was cut, and comes again
    (line,) = lines.lines
    assert line["event"] == "cannot accept connections"
    assert line["reason"] == "Too many open files"
    assert line["connections"] == 7
    acceptor.stop()
    for each in visitors:
        each.close()


async def test_stop_while_out_of_descriptors_leaves_nothing_open(hall: Hall) -> None:
    hall.failure = OSError(errno.EMFILE, "Too many open files")
    visitors = [hall.visit(name) for name in (b"first", b"second")]
    acceptor = hall.acceptor()
    await hall.arrived.wait()
    acceptor.stop()
    assert not acceptor.accepts
    for each in visitors:
        each.settimeout(5)
        with pytest.raises(ConnectionResetError):  # it was not left unanswered for ever
            each.recv(1)
        each.close()
