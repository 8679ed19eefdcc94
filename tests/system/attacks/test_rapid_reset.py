"""Calls are opened and reset in the same breath, without end (CVE-2023-44487).

A reset call costs the client two small frames and counts towards no limit of open calls; the server
has begun to work on each. A naive agent reads such a connection until it is dry, which it never is,
or ends at an error. vouchd reads a little of one connection in one turn, whatever waits there,
attests nobody for a call that is gone, and its gRPC server limits what one connection can have
going.
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
        target.judge(succeeded=not others_are_served(target))


def frames() -> Iterator[bytes]:
    block = call_headers()
    for stream in streams():
        yield frame(HEADERS, END_HEADERS, stream, block)
        yield frame(RST_STREAM, stream=stream, payload=b"\0\0\0\x08")
