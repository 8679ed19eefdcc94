"""The cost of each check of a caller, on real sockets and a real process."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack, closing

import structlog

from agent.attestation.attestor import WorkloadAttestor
from agent.kernel.caller import Caller, ask_again, identify
from agent.kernel.fingerprint import ProgramPin, read_fingerprint
from agent.kernel.sender import receive, stamp_senders
from attestors.api import AttestorContext
from attestors.unix import UnixAttestor, UnixOptions
from tests.bench.findings import OURS, Budget, Finding

REPEATS = 7
TIMES = 2000
# Reads of a call on an open connection. The client sends HEADERS and DATA, then WINDOW_UPDATE and
# RST_STREAM.
READS = 3
_HEADERS = bytes([0, 0, 60, 1, 4, 0, 0, 0, 1]) + bytes(60)
_DATA = bytes([0, 0, 5, 0, 1, 0, 0, 0, 1]) + bytes(5)
REQUEST = _HEADERS + _DATA
BUDGET = 0.15
SCENARIO = "checks of a caller, for a call on an open connection"


def measure(call_us: float) -> list[Finding]:
    """Return the microseconds of each check, and its share of a call that takes `call_us`."""
    costs = _costs()
    share = sum(cost for cost in costs.values() if cost > 0) / call_us
    return [
        *(
            Finding(scenario=SCENARIO, measure=f"{name}, µs", size=1, values={OURS: [cost]})
            for name, cost in costs.items()
        ),
        Finding(
            scenario=SCENARIO,
            measure="all, share of the call",
            size=1,
            values={OURS: [share]},
            budget=Budget(most=BUDGET),
        ),
    ]


def _costs() -> dict[str, float]:
    with ExitStack() as stack:
        client, server, plain_client, plain_server = _connections(stack)
        caller = stack.enter_context(closing(identify(server)))
        plain = _microseconds(lambda: (plain_client.send(REQUEST), plain_server.recv(65536)))
        stamped = _microseconds(lambda: (client.send(REQUEST), receive(server, 65536, caller)))
        return {
            "sender check": READS * (stamped - plain),
            "caller asked again": _microseconds(lambda: ask_again(server, caller)),
            "program check: pin and fingerprint": _microseconds(lambda: _bracket(caller)),
            "process unchanged, attestors skipped": -_saved_by_memory(caller),
        }


def _connections(stack: ExitStack) -> tuple[socket.socket, ...]:
    ends: list[socket.socket] = []
    for stamp in (True, False):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind("")
            if stamp:
                stamp_senders(listener)
            listener.listen()
            ends.append(stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)))
            ends[-1].connect(listener.getsockname())
            ends.append(stack.enter_context(listener.accept()[0]))
    return tuple(ends)


def _bracket(caller: Caller) -> None:
    with caller.open_proc() as view, closing(ProgramPin(view)) as pin:
        read_fingerprint(view)
        pin.changed()


def _saved_by_memory(caller: Caller) -> float:
    """Return the costs of the unix attestor without its caches."""

    class Forgetful(UnixAttestor):
        reuse_seconds = 0.0

    async def attested(attestor: WorkloadAttestor) -> None:
        async with attestor.attest(caller):
            pass

    log = structlog.wrap_logger(structlog.PrintLogger())
    with asyncio.Runner() as runner:
        asked, remembered = (
            WorkloadAttestor([kind(UnixOptions(), AttestorContext())], log)
            for kind in (Forgetful, UnixAttestor)
        )
        without = _microseconds(lambda: runner.run(attested(asked)))
        with_memory = _microseconds(lambda: runner.run(attested(remembered)))
        for attestor in (asked, remembered):
            runner.run(attestor.close())
    return without - with_memory


def _microseconds(act: Callable[[], object]) -> float:
    """Return the least of some repeats: disturbances only add."""
    for _ in range(100):
        act()
    return min(_once(act) for _ in range(REPEATS)) * 1e6


def _once(act: Callable[[], object]) -> float:
    started = time.process_time()
    for _ in range(TIMES):
        act()
    return (time.process_time() - started) / TIMES
