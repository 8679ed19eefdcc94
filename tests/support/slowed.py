"""An agent that wastes processor time in every call: `-m tests.support.slowed run -c FILE`."""

from __future__ import annotations

import time

from agent.cli import main
from agent.gate import Gate
from agent.peer import Caller

WASTED_SECONDS = 0.005

_begin_call = Gate.begin_call


def _slowly(self: Gate, peer: str) -> Caller:
    end = time.thread_time() + WASTED_SECONDS
    while time.thread_time() < end:
        pass
    return _begin_call(self, peer)


Gate.begin_call = _slowly  # type: ignore[method-assign]
main()
