"""Calls whose responses cannot be sent, because the client's window is closed (CVE-2019-9517).

The client announces a window of zero and never opens it, for many calls. The responses, with their
keys, wait in the server. The naive agent does not expect that, and ends. In vouchd each response
waits in its own call and delays no other; the number of calls on one connection is limited.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.abuse import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    SETTINGS,
    call_headers,
    flooded,
    frame,
    streams,
)
from tests.support.targets import VICTIM, Target, others_are_served

pytestmark = pytest.mark.system

# Nearly as many calls as one connection may have open.
LAST_STREAM = 179


def test_zero_window_stall(target: Target) -> None:
    with flooded(target, frames, uid=VICTIM):  # only a caller with an identity gets a long response
        target.record_result(succeeded=not others_are_served(target))


def frames() -> Iterator[bytes]:
    yield frame(SETTINGS, payload=INITIAL_WINDOW_SIZE.to_bytes(2, "big") + bytes(4))
    block, request = call_headers(), frame(DATA, END_STREAM, 0, bytes(5))
    for stream in streams():
        yield frame(HEADERS, END_HEADERS, stream, block)
        yield request[:5] + stream.to_bytes(4, "big") + request[9:]
        if stream > LAST_STREAM:
            return
