"""A header block without end (CVE-2024-27316 and its family).

The client sends HEADERS without END_HEADERS, and then CONTINUATION frames. A server that collects
the block before it checks it runs out of memory, or ends, like the naive one, at an unexpected
error. vouchd keeps nothing of a header block, bounds its size, and reads a little of one connection
at a time, so that other callers get their turn.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.abuse import CONTINUATION, HEADERS, call_headers, flooded, frame, streams
from tests.support.targets import Target, others_are_served

pytestmark = pytest.mark.system


def test_continuation_flood(target: Target) -> None:
    with flooded(target, frames):
        target.record_result(succeeded=not others_are_served(target))


def frames() -> Iterator[bytes]:
    yield frame(HEADERS, stream=1, payload=call_headers())
    for _ in streams():
        yield frame(CONTINUATION, stream=1, payload=b"\0\x01a\x04aaaa" * 100)
