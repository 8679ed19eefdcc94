"""The door, with real sockets: whom it turns away costs it nothing that lasts."""

from __future__ import annotations

import socket
import tracemalloc
from contextlib import closing

from tests.support.fakes import admission


async def test_whoever_is_refused_again_and_again_takes_no_memory() -> None:
    ours, theirs = socket.socketpair()
    with closing(ours), closing(theirs):
        full = admission(connections=1)
        admitted = full.enter(theirs, 0.0)
        assert admitted is not None
        assert full.enter(theirs, 0.0) is None
        tracemalloc.start()
        try:
            for _ in range(1000):
                assert full.enter(theirs, 0.1) is None
            kept, _most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        full.leave(admitted)
    assert kept < 50_000
