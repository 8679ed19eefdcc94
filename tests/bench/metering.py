"""The cost of the metrics for a call, and the cost of a scrape."""

from __future__ import annotations

import time
from collections.abc import Callable

from agent.signals import Stage, Stopwatch
from agent.telemetry.metrics import Metrics, Words
from tests.bench.findings import OURS, Budget, Finding

TIMES = 2000
REPEATS = 7
BUDGET = 0.03
SCENARIO = "metrics, for a call on an open connection"


def measure(call_us: float) -> list[Finding]:
    """Return the microseconds of the metrics, and their share of a call that takes `call_us`."""
    metrics = Metrics(Words(attestors=("unix",), methods=("FetchX509SVID",)))
    call = _microseconds(lambda: _call(metrics), TIMES)
    values = {
        "a call, µs": call,
        "a call, share of it": call / call_us,
        "a scrape, µs": _microseconds(metrics.text, 20),
    }
    return [
        Finding(
            scenario=SCENARIO,
            measure=measure,
            size=1,
            values={OURS: [value]},
            budget=Budget(most=BUDGET) if "share" in measure else None,
        )
        for measure, value in values.items()
    ]


def _call(metrics: Metrics) -> None:
    """Report a FetchX509SVID call with a known caller and a cached SVID."""
    began = time.perf_counter()
    first = time.perf_counter() - began
    began = time.perf_counter()
    metrics.timed(Stage.EVIDENCE, first + time.perf_counter() - began)
    with Stopwatch(metrics, Stage.MATCH):
        pass
    with Stopwatch(metrics, Stage.SEND):
        pass
    metrics.ended("FetchX509SVID", "CANCELLED")


def _microseconds(act: Callable[[], object], times: int) -> float:
    """Return the least of some repeats: disturbances only add."""

    def once() -> float:
        started = time.process_time()
        for _ in range(times):
            act()
        return (time.process_time() - started) / times

    return min(once() for _ in range(REPEATS)) * 1e6
