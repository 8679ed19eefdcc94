"""The metrics, in the text format of Prometheus.

The number of series is fixed when the agent starts: each label has its values from a list (`Words`,
`Stage`, `Refused`), and any other value counts as `other`. No PID, user or SPIFFE ID is a label:
a workload could create any number of series, and the metrics are not protected like the log.
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

# Bucket bounds: from a match among few entries to a client that does not read.
SECONDS = (1e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 0.1, 0.5, 1, 5)
# Codes that the API returns, and CANCELLED for a stream that its client ended.
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
"""The time of an event that will not happen: every comparison is false, in PromQL too."""

# Otherwise each counter has a second series with its creation time.
disable_created_metrics()  # type: ignore[no-untyped-call]


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """Label values that depend on the settings and on the API."""

    version: str = ""
    attestors: Iterable[str] = ()
    methods: Iterable[str] = ()
    limits: Iterable[str] = ()
    """Reasons of refusals by a limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Levels:
    """Current sizes and states. Times are seconds since the epoch, or `NEVER`."""

    ready: bool
    connections: int
    streams: Mapping[str, int]
    """Open streams by method."""
    svids: Mapping[str, int]
    """Cached SVIDs by kind."""
    svid_expiry: float
    """When the first of the cached X.509-SVIDs expires."""
    authority_expiry: Mapping[str, float]
    """When the signing authority expires, by kind."""
    authority_lifetime: Mapping[str, float]
    """Seconds between the validity bounds of the signing authority, by kind."""
    authority_failing: bool
    """Whether a due step of the rotation failed."""
    weak_proofs: Mapping[str, int] = field(default_factory=dict)
    """Connections so far whose caller proof is weak, by weakness."""


class Metrics:
    """The agent's metrics; implements `Signals`.

    Instances share nothing. All methods are called from the thread of the event loop.
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
            "vouchd_attestor_failures", "Attestations in which the attestor failed.", "attestor"
        )
        self._failures = {name: failures.labels(name) for name in attestors}

    def _make_entries(self) -> None:
        self.entries = self._gauge("vouchd_entries", "Registration entries in force.")
        self.entries_valid = self._gauge(
            "vouchd_entries_valid",
            "1 if the entries in force are those of the files, 0 if the files have errors.",
        )
        self.entries_loaded_at = self._gauge(
            "vouchd_entries_loaded_timestamp_seconds",
            "Time of the last load of the entries.",
        )
        self.reloads = self._counter(
            "vouchd_entries_reloads", "Attempts to load changed entry files, by result.", "result"
        )
        self.settings_valid = self._gauge(
            "vouchd_settings_valid",
            "1 if the settings in force are those of the file, 0 if the last reload failed.",
        )
        self.settings_valid.set(1)
        self.settings_reloads = self._counter(
            "vouchd_settings_reloads", "Attempts to reload the settings, by result.", "result"
        )
        for counter in (self.reloads, self.settings_reloads):
            for result in ("loaded", "refused"):
                counter.labels(result)  # so that its rate exists from the start
        self.reloads.labels("internal_error")

    def _make_calls(self, words: Words) -> None:
        calls = self._counter(
            "vouchd_calls",
            "Ended calls, by method and gRPC status code.",
            "method",
            "code",
        )
        self._calls = {
            (method, code): calls.labels(method, code)
            for method in (*words.methods, OTHER)
            for code in (*CODES, OTHER)
        }
        refusals = self._counter(
            "vouchd_refusals", "Refused calls and connections, by reason.", "reason"
        )
        self._refusals = {
            reason: refusals.labels(reason) for reason in (*map(str, Refused), *words.limits)
        }

        self._waits = self._counter(
            "vouchd_request_waits",
            "Times that the fair queue delayed the requests of a user and cgroup.",
        )

    def settings_reloaded(self, *, valid: bool) -> None:
        """Count a reload of the settings."""
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
        counter = self._calls.get((method, code))
        if counter is None:  # a path that a client chose, or a code that the API never returns
            method = method if (method, OTHER) in self._calls else OTHER
            counter = self._calls[method, code if code in CODES else OTHER]
        counter.inc()

    # --- exposition -----------------------------------------------------------------------------

    def watch(self, levels: Callable[[], Levels]) -> None:
        """Call `levels` for each exposition."""
        self._registry.register(_LevelsCollector(levels))

    def text(self) -> str:
        """Return all metrics in the Prometheus text format."""
        return generate_latest(self._registry).decode()

    def _gauge(self, name: str, meaning: str) -> Gauge:
        return Gauge(name, meaning, registry=self._registry)

    def _counter(self, name: str, meaning: str, *labels: str) -> Counter:
        return Counter(name, meaning, labels, registry=self._registry)


class _Durations:
    """A histogram of durations for one thread.

    Each call observes several; Histogram of prometheus_client, with its lock, takes ten times as
    long.
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
            "vouchd_stage_duration_seconds", "Duration of the stages of a call.", labels=["stage"]
        )
        for stage, durations in self._stages.items():
            durations.add_to(family, stage)
        yield family


class _LevelsCollector(Collector):
    def __init__(self, levels: Callable[[], Levels]) -> None:
        self._levels = levels

    def describe(self) -> Iterable[Metric]:
        """Return nothing: the levels may not exist yet."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """See Levels."""
        now = self._levels()
        yield _level("vouchd_ready", "1 if the agent accepts calls and can sign.", now.ready)
        yield _level("vouchd_connections", "Open connections.", now.connections)
        yield _levels("vouchd_streams", "Open streams, by method.", "method", now.streams)
        yield _levels("vouchd_svids", "Cached SVIDs, by kind.", "kind", now.svids)
        yield _level(
            "vouchd_svid_expiry_timestamp_seconds",
            "Time at which the first cached X.509-SVID expires; NaN if there is none.",
            now.svid_expiry,
        )
        yield _levels(
            "vouchd_authority_expiry_timestamp_seconds",
            "Time at which the signing authority expires, by kind.",
            "kind",
            now.authority_expiry,
        )
        yield _levels(
            "vouchd_authority_lifetime_seconds",
            "Seconds between the validity bounds of the signing authority, by kind.",
            "kind",
            now.authority_lifetime,
        )
        yield _level(
            "vouchd_authority_failing",
            "1 if a due step of the authority rotation failed; vouchd status shows why.",
            now.authority_failing,
        )
        weak = CounterMetricFamily(
            "vouchd_weak_proofs",
            "Connections whose caller proof is weak on this kernel, by weakness.",
            labels=["weakness"],
        )
        for weakness, count in now.weak_proofs.items():
            weak.add_metric([weakness], count)
        yield weak


def _level(name: str, meaning: str, value: float) -> Metric:
    return GaugeMetricFamily(name, meaning, value=value)


def _levels(name: str, meaning: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(name, meaning, labels=[label])
    for word, value in values.items():
        family.add_metric([word], value)
    return family
