"""The poller on real sockets, and events that are out of date."""

from __future__ import annotations

import asyncio
import select
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing
from functools import partial

import pytest

from agent.transport.poller import HUNG_UP, READABLE, WRITABLE, Poller
from tests.support.fakes import settle

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pairs() -> Iterator[list[Pair]]:
    with ExitStack() as stack:
        made = [socket.socketpair() for _ in range(3)]
        for pair in made:
            for sock in pair:
                stack.enter_context(closing(sock))
        yield made


async def test_a_callback_gets_the_events_of_its_descriptor(pairs: list[Pair]) -> None:
    with closing(Poller(asyncio.get_running_loop())) as poller:
        seen: list[tuple[int, int]] = []

        def note(number: int, events: int) -> None:
            seen.append((number, events))

        for number, (ours, _theirs) in enumerate(pairs):
            poller.register(ours.fileno(), partial(note, number), READABLE)
        pairs[1][1].send(b"x")
        await settle()
        assert set(seen) == {(1, READABLE)}
        poller.modify(pairs[1][0].fileno(), WRITABLE)
        seen.clear()
        await settle()
        assert set(seen) == {(1, WRITABLE)}
        assert len(poller) == 3


async def test_a_hang_up_is_reported_whatever_is_asked_for(pairs: list[Pair]) -> None:
    with closing(Poller(asyncio.get_running_loop())) as poller:
        seen: list[int] = []
        ours, theirs = pairs[0]
        poller.register(ours.fileno(), seen.append, 0)
        theirs.send(b"x")
        await settle()
        assert not seen
        theirs.close()
        await settle()
        assert seen
        assert all(events & HUNG_UP for events in seen)


async def test_a_descriptor_that_was_forgotten_in_the_same_turn_gets_no_event(
    pairs: list[Pair],
) -> None:
    with closing(Poller(asyncio.get_running_loop())) as poller:
        seen: list[int] = []

        def forget_all(events: int) -> None:
            seen.append(events)
            for ours, _theirs in pairs:
                poller.forget(ours.fileno())

        for ours, theirs in pairs:
            poller.register(ours.fileno(), forget_all, READABLE)
            theirs.send(b"x")
        await settle()
        assert len(seen) == 1
        assert len(poller) == 0


async def test_a_forgotten_descriptor_is_not_watched_while_a_copy_of_it_is_open(
    pairs: list[Pair],
) -> None:
    """The kernel would report the copy under the number that was closed."""
    with closing(Poller(asyncio.get_running_loop())) as poller:
        ours, theirs = pairs[0]
        number = ours.fileno()
        poller.register(number, lambda _events: None, READABLE)
        with closing(ours.dup()):
            poller.forget(number)
            ours.close()
            theirs.send(b"x")
            epoll = poller._epoll
            assert isinstance(epoll, select.epoll)
            assert not epoll.poll(0)
        poller.forget(number)


async def test_close_is_idempotent(pairs: list[Pair]) -> None:
    poller = Poller(asyncio.get_running_loop())
    poller.register(pairs[0][0].fileno(), lambda _events: None, READABLE)
    poller.close()
    poller.close()
