"""CPU time and latency of calls, one at a time and many at once."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count, islice, repeat

from tests.bench.findings import Budget, Finding
from tests.bench.servers import Server, jwt, token_of, validation, x509
from tests.bench.wire import Connection, Crowd, Request, crowd
from tests.support.flooding import percentile

ROUNDS = 5
CALLS = 400
AT_ONCE = (1, 10, 100)
CPU, P50, P99 = "CPU per call, µs", "p50, ms", "p99, ms"
# A server that uses at most _TRIFLE_SECONDS of CPU (a timer of gRPC) in _STILL_SECONDS is idle.
_STILL_SECONDS, _TRIFLE_SECONDS = 0.02, 0.0002
# The time-out of the wait for an idle server.
_SETTLE_SECONDS = 2.0
_UNUSED = count()


def _new_audiences(_server: Server) -> Iterator[Request]:
    return (jwt(f"audience-{number}") for number in _UNUSED)


def _validations(server: Server) -> Iterator[Request]:
    return repeat(validation(token_of(server.socket)))


@dataclass(frozen=True, slots=True)
class Calls:
    """A kind of call; `connects`: each call opens a connection."""

    name: str
    requests: Callable[[Server], Iterator[Request]]
    connects: bool = False
    most: float | None = None
    """The budget of the CPU time, as a ratio to the baseline."""


FETCH = Calls("FetchX509SVID, open connection", lambda _: repeat(x509()), most=1.6)
CONNECT = Calls("connect + FetchX509SVID", lambda _: repeat(x509()), connects=True, most=1.6)
KINDS = (
    FETCH,
    CONNECT,
    Calls("FetchJWTSVID, cached", lambda _: repeat(jwt())),
    Calls("FetchJWTSVID, new audience", _new_audiences),
    Calls("ValidateJWTSVID", _validations),
)


def measure(
    kind: Calls, servers: Sequence[Server], at_once: int, rounds: int = ROUNDS, calls: int = CALLS
) -> list[Finding]:
    """Measure CPU time and latencies of `at_once` concurrent calls; the servers alternate."""
    values: defaultdict[str, defaultdict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for server in servers:
        _round(kind, server, at_once, at_once)  # warm-up
    for number in range(rounds):
        for server in servers if number % 2 else reversed(servers):
            cpu, latencies = _round(kind, server, at_once, calls)
            values[CPU][server.name].append(cpu * 1e6)
            values[P50][server.name].append(percentile(0.5, latencies) * 1e3)
            values[P99][server.name].append(percentile(0.99, latencies) * 1e3)
    return [
        Finding(
            scenario=kind.name,
            measure=measure,
            size=at_once,
            values=by_server,
            per_one=measure == CPU,
            budget=(
                Budget(most=kind.most, of_baseline=True)
                if kind.most and measure == CPU and at_once == 1
                else None
            ),
        )
        for measure, by_server in values.items()
    ]


def settle(server: Server) -> None:
    """Wait until the server is idle: work after the last response counts too."""
    end, took = time.perf_counter() + _SETTLE_SECONDS, _SETTLE_SECONDS
    while took > _TRIFLE_SECONDS and time.perf_counter() < end:
        before = server.cpu_seconds()
        time.sleep(_STILL_SECONDS)  # noqa: TID251 - idleness has no event
        took = server.cpu_seconds() - before


def _round(kind: Calls, server: Server, at_once: int, calls: int) -> tuple[float, list[float]]:
    """Return the server's CPU time per call and the latencies of the calls, in seconds."""
    requests = list(islice(kind.requests(server), calls))
    batches = [requests[i : i + at_once] for i in range(0, calls, at_once)]
    latencies: list[float] = []
    with crowd(server.socket, 0 if kind.connects else at_once) as kept:
        for connection in kept.connections():
            connection.fetch(requests[0])
        settle(server)
        before = server.cpu_seconds()
        for batch in batches:
            if kind.connects:
                with crowd() as fresh:
                    latencies += _volley(fresh, batch, partial(fresh.connect, server.socket))
            else:
                latencies += _volley(kept, batch, iter(kept.connections()).__next__)
        settle(server)
        return (server.cpu_seconds() - before) / calls, latencies


def _volley(
    several: Crowd, batch: Sequence[Request], take: Callable[[], Connection]
) -> list[float]:
    """Make concurrent calls, each on a connection of `take`; return their latencies."""
    begun: dict[tuple[int, int], tuple[Request, float]] = {}
    latencies: list[float] = []

    def note(connection: Connection, stream: int, moment: float) -> None:
        request, start = begun.pop((connection.fileno(), stream))
        latencies.append(moment - start)
        connection.done(request, stream)

    for request in batch:
        start = time.perf_counter()
        connection = take()
        begun[connection.fileno(), connection.call(request)] = request, start
    several.gather(len(batch), note)
    return latencies
