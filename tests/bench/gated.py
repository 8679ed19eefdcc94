"""The gate alone: the baseline's server behind the agent's gate.

The gate relays to the server and checks the sender of each chunk. The costs are the least costs of
an agent with such a gate. The command line is that of baseline.py.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import structlog

from agent.gate.admission import Admission
from agent.gate.gate import Gate
from agent.gate.listener import Listener, SocketFile
from agent.limits.fair_queue import FairQueue
from agent.limits.quotas import Limits, Quotas
from agent.signals import NO_SIGNALS
from tests.bench.baseline import Answers, Bare, run, start, until_killed

_PLENTY = 1_000_000
_PATIENCE_SECONDS = 60.0


async def serve(socket: str, answers: Answers) -> None:
    """Serve behind the gate; each method calls `Gate.begin_call` first."""
    inner = f"{socket}i"
    gate = _gate(inner)
    server = await start(Bare(answers, gate.begin_call), inner)
    listener = Listener(SocketFile(path=Path(socket), mode=0o600))
    gate.start(listener.socket)
    await until_killed(server)


def _gate(inner: str) -> Gate:
    loop = asyncio.get_running_loop()
    limits = Limits(
        connections=_PLENTY,
        connections_per_user=_PLENTY,
        streams=_PLENTY,
        streams_per_user=_PLENTY,
        attestations=_PLENTY,
        attestations_per_user=_PLENTY,
    )
    fair_queue = FairQueue(loop, _PLENTY, NO_SIGNALS)
    admission = Admission(Quotas(limits), fair_queue, lambda _caller, _refusal: None)
    return Gate(loop, inner, admission, structlog.get_logger(), _PATIENCE_SECONDS)


if __name__ == "__main__":
    run(serve)
