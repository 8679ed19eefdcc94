"""The caller connects and executes the trusted program; its child sends the request.

The child inherits the connection and sends the request at any later time. SO_PEERCRED still names
the process that connected, which now runs the trusted program. SO_PASSCRED names the sender of each
chunk: vouchd closes the connection at the first chunk of another process.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from tests.support import pids
from tests.support.targets import (
    TRUSTED_ID,
    VICTIM,
    Target,
    connect,
    exec_trusted,
    fetch_ids,
    found_by,
)

pytestmark = pytest.mark.system


def test_exec_swap_request_after(target: Target) -> None:
    def attacker(report: Callable[[list[str]], object]) -> None:
        pids.become(VICTIM)
        sock = connect(target.socket)
        swapped, swap = os.pipe()
        if os.fork() == 0:
            os.close(swap)
            os.read(swapped, 1)  # ends when exec closes the other end
            report(fetch_ids(sock))
            os._exit(0)
        exec_trusted(target)

    found = found_by(attacker)
    target.record_result(succeeded=TRUSTED_ID in found)
    target.require_log("connection refused", "bytes of another process", f"sender_uid={VICTIM}")
