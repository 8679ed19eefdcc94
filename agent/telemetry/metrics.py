"""What is counted, in the names and the form of Prometheus.

The number of series is fixed when the agent starts: each label has its words from a list (`Words`,
`Stage`, `Refused`), and one that is not on it counts as `other`. No PID, user or SPIFFE ID is ever
a label: a workload that makes up a thousand of them must not cost the monitoring anything, and who
is served is nobody's business there.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Info,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from agent.signals import Refused, Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from prometheus_client import Metric

# From a match among few entries to a client that does not read.
SECONDS = (1e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 0.1, 0.5, 1, 5)
# Those that the API answers with, and how a stream ends whose client has left.
CODES = (
    "OK",
    "CANCELLED",
    "INVALID_ARGUMENT",
    "PERMISSION_DENIED",
    "UNAVAILABLE",
    "UNIMPLEMENTED",
)
OTHER = str(Refused.OTHER)
NEVER = float("nan")
"""The time of what is not to happen: every comparison with it is false, in PromQL too."""

# Each counter would have a second series with the time when it was made.
disable_created_metrics()  # type: ignore[no-untyped-call]


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """What labels may say, beside what is fixed: it depends on the settings and on the API."""

    version: str = ""
    attestors: Iterable[str] = ()
    methods: Iterable[str] = ()
    limits: Iterable[str] = ()
    """By what words the limits refuse."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Levels:
    """What has a size or a state, as of now. Times are seconds since the epoch, or `NEVER`."""

    ready: bool
    connections: int
    streams: Mapping[str, int]
    """By method."""
    svids: Mapping[str, int]
    """Those that are kept, by kind."""
    svid_expiry: float
    """When the first of the X.509-SVIDs that are kept expires."""
    authority_expiry: Mapping[str, float]
    """When the one that signs expires, by kind."""
    authority_lifetime: Mapping[str, float]
    """Seconds from its beginning to its end, by kind."""
    authority_failing: bool
    """Whether a step of an authority that was due could not be taken."""
    weaker_proofs: Mapping[str, int] = field(default_factory=dict)
    """Connections so far, by what the kernel could not tell of them."""


class Metrics:
    """The agent's metrics, and the `Signals` that become some of them.

    Each instance counts by itself. It is called from one thread, that of the loop.
    """

    def __init__(self, words: Words = Words()) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        build = Info("vouchd_build", "The running version.", registry=self._registry)
        build.info({"version": words.version})
        self._make_entries()
        self._make_calls(words)
        attestors = (*words.attestors, OTHER)
        self._stages = {stage: _Durations() for stage in Stage}
        self._attestors = {name: _Durations() for name in attestors}
        named = {str(stage): durations for stage, durations in self._stages.items()}
        named |= {f"attestor:{name}": each for name, each in self._attestors.items()}
        self._registry.register(_StagesCollector(named))
        failures = self._counter(
            "vouchd_attestor_failures", "Attestations that an attestor could not do.", "attestor"
        )
        self._failures = {name: failures.labels(name) for name in attestors}

    def _make_entries(self) -> None:
        self.entries = self._gauge("vouchd_entries", "Registration entries in force.")
        self.entries_valid = self._gauge(
            "vouchd_entries_valid",
            "1 if the entries in force are those of the files, 0 if the files have mistakes.",
        )
        self.entries_loaded_at = self._gauge(
            "vouchd_entries_loaded_timestamp_seconds", "When the entries in force were loaded."
        )
        self.reloads = self._counter(
            "vouchd_entries_reloads", "Attempts to load changed entry files.", "result"
        )
        self.settings_valid = self._gauge(
            "vouchd_settings_valid",
            "1 if the settings in force are those of the file, 0 if they could not be taken up.",
        )
        self.settings_valid.set(1)
        self.settings_reloads = self._counter(
            "vouchd_settings_reloads", "Attempts to load the settings again.", "result"
        )
        for counter in (self.reloads, self.settings_reloads):
            for result in ("loaded", "refused"):
                counter.labels(result)  # so that a rate of it exists from the beginning
        self.reloads.labels("broke")

    def _make_calls(self, words: Words) -> None:
        calls = self._counter(
            "vouchd_calls", "Calls that have ended, by their status.", "method", "code"
        )
        self._calls = {
            (method, code): calls.labels(method, code)
            for method in (*words.methods, OTHER)
            for code in (*CODES, OTHER)
        }
        refusals = self._counter(
            "vouchd_refusals", "Calls and connections that were refused.", "reason"
        )
        self._refusals = {
            reason: refusals.labels(reason) for reason in (*map(str, Refused), *words.limits)
        }

        self._waits = self._counter(
            "vouchd_request_waits",
            "How often the requests of a user in a cgroup had to wait for their share.",
        )

    def settings_reloaded(self, *, valid: bool) -> None:
        """It was tried to take up changed settings."""
        self.settings_valid.set(valid)
        self.settings_reloads.labels("loaded" if valid else "refused").inc()

    # --- signals ---------------------------------------------------------------------------------

    def timed(self, stage: Stage, seconds: float) -> None:
        """See Signals.timed."""
        self._stages[stage].observe(seconds)

    def attested(self, attestor: str, seconds: float, *, failed: bool) -> None:
        """See Signals.attested."""
        name = attestor if attestor in self._attestors else OTHER
        self._attestors[name].observe(seconds)
        if failed:
            self._failures[name].inc()

    def waited(self) -> None:
        """See Signals.waited."""
        self._waits.inc()

    def refused(self, reason: str, times: int = 1) -> None:
        """See Signals.refused."""
        self._refusals.get(reason, self._refusals[OTHER]).inc(times)

    def ended(self, method: str, code: str) -> None:
        """See Signals.ended."""
        known = self._calls.get((method, code)) or self._calls.get((method, OTHER))
        (known or self._calls[OTHER, OTHER]).inc()

    # --- the whole -------------------------------------------------------------------------------

    def watch(self, levels: Callable[[], Levels]) -> None:
        """Have each exposition ask for the levels too."""
        self._registry.register(_LevelsCollector(levels))

    def text(self) -> str:
        """All of them in the Prometheus text format."""
        return generate_latest(self._registry).decode()

    def _gauge(self, name: str, meaning: str) -> Gauge:
        return Gauge(name, meaning, registry=self._registry)

    def _counter(self, name: str, meaning: str, *labels: str) -> Counter:
        return Counter(name, meaning, labels, registry=self._registry)


class _Durations:
    """How often something took how long.

    Each call notes several, and a Histogram, which is made for many threads, takes ten times as
    long for that.
    """

    __slots__ = ("_counts", "_sum")

    def __init__(self) -> None:
        self._counts = [0] * (len(SECONDS) + 1)
        self._sum = 0.0

    def observe(self, seconds: float) -> None:
        self._counts[bisect_left(SECONDS, seconds)] += 1
        self._sum += seconds

    def add_to(self, family: HistogramMetricFamily, stage: str) -> None:
        bounds = map(floatToGoString, (*SECONDS, math.inf))
        family.add_metric([stage], [*zip(bounds, accumulate(self._counts), strict=True)], self._sum)


class _StagesCollector(Collector):
    def __init__(self, stages: Mapping[str, _Durations]) -> None:
        self._stages = stages

    def collect(self) -> Iterable[Metric]:
        """See Stage."""
        family = HistogramMetricFamily(
            "vouchd_stage_duration_seconds", "How long the stages of a call take.", labels=["stage"]
        )
        for stage, durations in self._stages.items():
            durations.add_to(family, stage)
        yield family


class _LevelsCollector(Collector):
    def __init__(self, levels: Callable[[], Levels]) -> None:
        self._levels = levels

    def describe(self) -> Iterable[Metric]:
        """Nothing: the levels may not be there yet."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """See Levels."""
        now = self._levels()
        yield _level("vouchd_ready", "1 if the agent serves and can sign.", now.ready)
        yield _level("vouchd_connections", "Connections that are open.", now.connections)
        yield _levels("vouchd_streams", "Streams that are open.", "method", now.streams)
        yield _levels("vouchd_svids", "SVIDs that are kept.", "kind", now.svids)
        yield _level(
            "vouchd_svid_expiry_timestamp_seconds",
            "When the first of the X.509-SVIDs that are kept expires; NaN if there are none.",
            now.svid_expiry,
        )
        yield _levels(
            "vouchd_authority_expiry_timestamp_seconds",
            "When the authority that signs expires.",
            "kind",
            now.authority_expiry,
        )
        yield _levels(
            "vouchd_authority_lifetime_seconds",
            "The whole life of the authority that signs.",
            "kind",
            now.authority_lifetime,
        )
        yield _level(
            "vouchd_authority_failing",
            "1 if a step that was due could not be taken: vouchd status says why.",
            now.authority_failing,
        )
        weaker = CounterMetricFamily(
            "vouchd_weaker_proofs",
            "Connections of whom this kernel could tell less than others can.",
            labels=["kind"],
        )
        for kind, count in now.weaker_proofs.items():
            weaker.add_metric([kind], count)
        yield weaker


def _level(name: str, meaning: str, value: float) -> Metric:
    return GaugeMetricFamily(name, meaning, value=value)


def _levels(name: str, meaning: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(name, meaning, labels=[label])
    for word, value in values.items():
        family.add_metric([word], value)
    return family
