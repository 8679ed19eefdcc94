"""The metrics in the text format of Prometheus."""

from __future__ import annotations

import math
from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from agent.telemetry.metrics import SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from prometheus_client import Metric

    from agent.telemetry.metrics import Counts, Durations, Levels, Metrics


def exposed(metrics: Metrics) -> str:
    """Return the metrics of the agent and of its process."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    registry.register(_Collector(metrics))
    return generate_latest(registry).decode()


class _Collector(Collector):
    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def describe(self) -> Iterable[Metric]:
        """Return nothing: each exposition has a registry of its own."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Yield each family of series."""
        metrics = self._metrics
        yield InfoMetricFamily(
            "vouchd_build", "The running version.", value={"version": metrics.version}
        )
        for level in metrics.gauges():
            yield _level(level.name, level.meaning, level.value)
        yield from map(_counts, metrics.counts())
        yield _durations(metrics.durations())
        if metrics.levels is not None:
            yield from _current(metrics.levels())


def _counts(counts: Counts) -> Metric:
    family = CounterMetricFamily(counts.name, counts.meaning, labels=counts.labels)
    for values, number in counts.values.items():
        family.add_metric(values, number)
    return family


def _durations(stages: Mapping[str, Durations]) -> Metric:
    family = HistogramMetricFamily(
        "vouchd_stage_duration_seconds", "Duration of the stages of a call.", labels=["stage"]
    )
    bounds = [*map(floatToGoString, (*SECONDS, math.inf))]
    for stage, each in stages.items():
        buckets = zip(bounds, accumulate(each.counts), strict=True)
        family.add_metric([stage], [*buckets], each.sum)
    return family


def _current(now: Levels) -> Iterator[Metric]:
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
