"""Calls with megabytes of metadata.

Each header block is complete and valid, and far larger than any workload's. vouchd bounds the size
of a header block and refuses the call; other callers get their turn between its frames.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.abuse import (
    CONTINUATION,
    END_HEADERS,
    HEADERS,
    call_headers,
    flooded,
    frame,
    streams,
)
from tests.support.targets import Target, others_are_served

pytestmark = pytest.mark.system


def test_giant_headers(target: Target) -> None:
    with flooded(target, frames):
        target.record_result(succeeded=not others_are_served(target))


def frames() -> Iterator[bytes]:
    filler = call_headers(("x-filler", "x" * 15_000) for _ in range(1))
    for stream in streams():
        yield frame(HEADERS, stream=stream, payload=call_headers())
        for _ in range(60):
            yield frame(CONTINUATION, stream=stream, payload=filler[-15_000:])
        yield frame(CONTINUATION, END_HEADERS, stream=stream)
