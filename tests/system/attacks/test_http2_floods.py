"""The known classes of attacks on HTTP/2 servers (docs/security.md lists them).

The naive agent reads a connection until it is empty, which it never is, or ends at an error.
vouchd reads a little of one connection in a turn, holds a bounded number of bytes, counts frames
that carry no request, and ends the connection with ENHANCE_YOUR_CALM.
"""

from __future__ import annotations

import os
import select
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

from tests.support import pids
from tests.support.abuse import flooded
from tests.support.http2_floods import CLASSES
from tests.support.rules import CALM, STREAM_CLOSED
from tests.support.targets import VICTIM, Target, others_are_served
from tests.support.wire import started

MIB = 1 << 20
# What four clients of one user may make the agent hold at its highest, with the allocator's share.
MOST_GROWTH = 32 * MIB
# A client that may send so many frames without a request is not bounded.
MOST_FRAMES = 20_000
BATCH_FRAMES = 50
# The requests are valid. The client does not read, and its connection ends by a deadline.
WITHOUT_AN_END = ("responses that are not read",)

pytestmark = pytest.mark.system


@pytest.mark.parametrize("attack", CLASSES, ids=list(CLASSES))
def test_http2_floods(target: Target, attack: str) -> None:
    others_are_served(target)  # what the agent makes at the first call is no growth
    before = highest_memory(target)
    for name, flood in CLASSES[attack].items():
        with flooded(target, flood, uid=VICTIM):
            target.record_result(succeeded=not others_are_served(target, times=2))
        if target.naive:
            return  # it has ended, or never ends the first one
        if name not in WITHOUT_AN_END:
            assert end_of(target, flood()) in (CALM, STREAM_CLOSED), name
    assert highest_memory(target) - before < MOST_GROWTH


def highest_memory(target: Target) -> int:
    """Return the highest resident size so far, in bytes (VmHWM of proc(5))."""
    lines = Path(f"/proc/{target.pid}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) * 1024


def end_of(target: Target, frames: Iterator[bytes]) -> int:
    """Send frames as a client that reads; return the code of the GOAWAY that ends the connection.

    Returns:
        The code, or 255 if the connection did not end.
    """

    def client() -> None:
        pids.become(VICTIM)
        with started(target.socket) as wire:
            wire.barrier()  # the client's own answers must not come between the frames
            wire.answers = False
            for _ in range(MOST_FRAMES // BATCH_FRAMES):
                wire.send(*islice(frames, BATCH_FRAMES))
                while not wire.is_closed and select.select([wire.sock], [], [], 0)[0]:
                    wire.read()
                if wire.is_closed:
                    os._exit(wire.goaways[-1][1] if wire.goaways else 254)
        os._exit(255)

    return pids.reap(pids.fork(client))
