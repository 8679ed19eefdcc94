"""An agent that wastes processor time in every call: `-m tests.support.slowed run -c FILE`."""

from __future__ import annotations

from agent.cli.main import main
from agent.gate.gate import Gate
from agent.kernel.caller import Caller

# These turns take about the instructions of one call.
WASTED_TURNS = 4_500

_begin_call = Gate.begin_call


def _slowly(self: Gate, peer: str) -> Caller:
    for _ in range(WASTED_TURNS):
        pass
    return _begin_call(self, peer)


Gate.begin_call = _slowly  # type: ignore[method-assign]
main()
