"""Calls that are opened and reset at once, without end (CVE-2023-44487).

A reset call costs the client two small frames, counts towards no limit of open calls, and the
server has begun to work on it. A naive agent reads such a connection until it is empty, which it
never is, or ends at an error. vouchd reads a little of one connection in a turn, attests no caller
for a call that was reset, and its gRPC server limits the calls of one connection.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.abuse import (
    END_HEADERS,
    HEADERS,
    RST_STREAM,
    call_headers,
    flooded,
    frame,
    streams,
)
from tests.support.targets import Target, others_are_served

pytestmark = pytest.mark.system


def test_rapid_reset(target: Target) -> None:
    with flooded(target, frames):
        target.record_result(succeeded=not others_are_served(target))


def frames() -> Iterator[bytes]:
    block = call_headers()
    for stream in streams():
        yield frame(HEADERS, END_HEADERS, stream, block)
        yield frame(RST_STREAM, stream=stream, payload=b"\0\0\0\x08")
