"""A thread that is not the first executes the trusted program.

The kernel ends all other threads and gives the remaining one the PID of the process: the pidfd does
not poll readable, the start time stays, and `/proc/PID` is the same directory. A child continues on
the connection. The check of each chunk's sender stops it, like every exec swap.
"""

from __future__ import annotations

import os
import threading
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


def test_thread_exec(target: Target) -> None:
    def attacker(report: Callable[[list[str]], object]) -> None:
        pids.become(VICTIM)
        sock = connect(target.socket)
        swapped, swap = os.pipe()
        if os.fork() == 0:
            os.close(swap)
            os.read(swapped, 1)  # ends when exec closes the other end
            report(fetch_ids(sock))
            os._exit(0)
        thread = threading.Thread(target=exec_trusted, args=(target,))
        thread.start()
        thread.join()

    target.record_result(succeeded=TRUSTED_ID in found_by(attacker))
    target.require_log("connection refused", "bytes of another process")
