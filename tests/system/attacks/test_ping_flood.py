"""PINGs without end, by one who never reads the answers (CVE-2019-9512).

Every PING must be answered; a server that queues the answers fills its memory, and one that waits
until they are written waits for ever. vouchd's relay holds one chunk a direction and reads no
further while that is not written; its gRPC server ends connections that ping too much.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.abuse import PING, flooded, frame, streams
from tests.support.targets import Target, others_are_served

pytestmark = pytest.mark.system


def test_ping_flood(target: Target) -> None:
    with flooded(target, frames):
        target.judge(succeeded=not others_are_served(target))


def frames() -> Iterator[bytes]:
    for number in streams():
        yield frame(PING, payload=number.to_bytes(8, "big"))
