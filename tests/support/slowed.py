"""An agent that wastes processor time in every call: `-m tests.support.slowed run -c FILE`."""

from __future__ import annotations

from agent.cli.main import main
from agent.kernel.caller import Caller
from agent.transport.connection import Connection

# These turns take about the instructions of one call.
WASTED_TURNS = 2_700

_caller = Connection.caller


def _slowly(self: Connection) -> Caller:
    for _ in range(WASTED_TURNS):
        pass
    return _caller(self)


Connection.caller = _slowly  # type: ignore[method-assign]
main()
