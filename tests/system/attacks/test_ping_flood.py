"""PINGs without end from a client that never reads the answers (CVE-2019-9512).

A server must answer every PING. One that queues the answers fills its memory, and one that waits
for their write stops. vouchd does not read while a client does not, and ends connections with too
many frames that carry no request.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.abuse import PING, flooded, frame, streams
from tests.support.targets import Target, others_are_served

pytestmark = pytest.mark.system


def test_ping_flood(target: Target) -> None:
    with flooded(target, frames):
        target.record_result(succeeded=not others_are_served(target))


def frames() -> Iterator[bytes]:
    for number in streams():
        yield frame(PING, payload=number.to_bytes(8, "big"))
