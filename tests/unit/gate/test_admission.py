"""Admission on real sockets: a process over its quota is refused at little cost."""

from __future__ import annotations

import socket
import tracemalloc
from collections.abc import Iterator
from contextlib import closing

import pytest

from agent.gate.admission import REFUSED_SECONDS
from agent.kernel.caller import Caller, identify
from tests.support.fakes import admission


@pytest.fixture
def theirs() -> Iterator[socket.socket]:
    ours, theirs = socket.socketpair()
    with closing(ours), closing(theirs):
        yield theirs


async def test_a_process_that_is_refused_again_and_again_takes_no_memory(
    theirs: socket.socket,
) -> None:
    full = admission(connections=1)
    admitted = full.admit(theirs, 0.0)
    assert admitted is not None
    assert full.admit(theirs, 0.0) is None
    tracemalloc.start()
    try:
        for _ in range(1000):
            assert full.admit(theirs, 0.1) is None
        kept, _most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    full.release(admitted)
    assert kept < 50_000


async def test_a_refused_process_is_identified_again_only_after_a_moment(
    theirs: socket.socket,
) -> None:
    identified = []

    def identify_peer(sock: socket.socket) -> Caller:
        identified.append(sock)
        return identify(sock)

    full = admission(connections=1)
    full.identify_peer = identify_peer
    admitted = full.admit(theirs, 0.0)
    assert admitted is not None
    for now in (1.0, 1.0 + REFUSED_SECONDS / 2):
        assert full.admit(theirs, now) is None
    assert len(identified) == 2
    full.release(admitted)
    again = full.admit(theirs, 1.0 + REFUSED_SECONDS)
    assert again is not None
    full.release(again)
