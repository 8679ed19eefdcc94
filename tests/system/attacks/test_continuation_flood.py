"""A header block that never ends (CVE-2024-27316 and its kin).

HEADERS without END_HEADERS, and CONTINUATION after CONTINUATION: a server that collects the block
before it judges it runs out of memory, or, like the naive one, ends at the first error that nobody
thought of. vouchd's walker keeps nothing of a header block, and reads a little of one connection at
a time, so that others have their turn; what its gRPC server keeps of such a block costs memory and
processor, but nobody's identity and nobody's turn.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.abuse import CONTINUATION, HEADERS, call_headers, flooded, frame, streams
from tests.support.targets import Target, others_are_served

pytestmark = pytest.mark.system


def test_continuation_flood(target: Target) -> None:
    with flooded(target, frames):
        target.judge(succeeded=not others_are_served(target))


def frames() -> Iterator[bytes]:
    yield frame(HEADERS, stream=1, payload=call_headers())
    for _ in streams():
        yield frame(CONTINUATION, stream=1, payload=b"\0\x01a\x04aaaa" * 100)
