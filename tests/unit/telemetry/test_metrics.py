"""The metrics: a fixed set of series, and no label value that a caller chooses."""

from __future__ import annotations

import ast
import math
from dataclasses import replace
from pathlib import Path

import pytest

from agent.signals import NO_SIGNALS, Refused, Stage, Stopwatch
from agent.telemetry.metrics import CODES, NEVER, Levels, Metrics, Words
from tests.support.scrape import changes, series

ROOMS_WITH_CODES = ("agent/api", "agent/transport")
WORDS = Words(
    version="1.2.3",
    attestors=("unix", "docker"),
    methods=("FetchX509SVID", "FetchJWTSVID"),
    limits=("calls_per_user",),
)
LEVELS = Levels(
    ready=True,
    connections=3,
    streams={"FetchX509SVID": 2},
    svids={"x509": 5, "jwt": 7},
    svid_expiry=1e9,
    authority_expiry={"x509": 2e9, "jwt": 3e9},
    authority_lifetime={"x509": 60.0, "jwt": 90.0},
    authority_failing=False,
    weak_proofs={"no_pidfs": 4},
)


def made() -> Metrics:
    metrics = Metrics(WORDS)
    metrics.watch(lambda: LEVELS)
    return metrics


def test_each_signal_increments_its_series() -> None:
    metrics = made()
    before = series(metrics.text())
    metrics.ended("FetchX509SVID", "OK")
    metrics.refused(Refused.NO_ENTRY)
    metrics.refused("calls_per_user")
    metrics.timed(Stage.MATCH, 3e-5)
    metrics.attested("docker", 0.2, failed=True)
    found = changes(before, series(metrics.text()))
    assert found['vouchd_calls_total{code="OK",method="FetchX509SVID"}'] == 1
    assert found['vouchd_refusals_total{reason="no_entry"}'] == 1
    assert found['vouchd_refusals_total{reason="calls_per_user"}'] == 1
    assert found['vouchd_stage_duration_seconds_sum{stage="match"}'] == pytest.approx(3e-5)
    assert 'vouchd_stage_duration_seconds_bucket{le="1e-05",stage="match"}' not in found
    assert found['vouchd_stage_duration_seconds_bucket{le="5e-05",stage="match"}'] == 1
    assert found['vouchd_stage_duration_seconds_count{stage="attestor:docker"}'] == 1
    assert found['vouchd_attestor_failures_total{attestor="docker"}'] == 1


def test_an_attestor_that_answers_counts_no_failure() -> None:
    metrics = made()
    before = series(metrics.text())
    metrics.attested("unix", 0.001, failed=False)
    assert not [name for name in changes(before, series(metrics.text())) if "failures" in name]


def test_unknown_label_values_count_as_other() -> None:
    metrics = made()
    before = series(metrics.text())
    for number in range(100):
        metrics.refused(f"reason {number}")
        metrics.ended("FetchX509SVID", f"code {number}")
        metrics.ended(f"method {number}", "OK")
        metrics.attested(f"attestor {number}", 0.1, failed=True)
    after = series(metrics.text())
    assert after.keys() == before.keys()
    found = changes(before, after)
    assert found['vouchd_refusals_total{reason="other"}'] == 100
    assert found['vouchd_calls_total{code="other",method="FetchX509SVID"}'] == 100
    assert found['vouchd_calls_total{code="OK",method="other"}'] == 100
    assert found['vouchd_attestor_failures_total{attestor="other"}'] == 100


def test_every_status_code_in_the_source_is_a_label_value() -> None:
    root = Path(__file__).parents[3]
    nodes = [
        node
        for room in ROOMS_WITH_CODES
        for path in (root / room).glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    ]
    chosen = {
        node.attr
        for node in nodes
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id in {"Code", "StatusCode"}
    }
    assert chosen == set(CODES)


def test_every_series_exists_from_the_start() -> None:
    metrics = made()
    before = series(metrics.text()).keys()
    for stage in Stage:
        metrics.timed(stage, 1.0)
    for reason in Refused:
        metrics.refused(reason)
    for method in WORDS.methods:
        for code in CODES:
            metrics.ended(method, code)
    for attestor in WORDS.attestors:
        metrics.attested(attestor, 1.0, failed=True)
    metrics.entries_reloaded("loaded")
    metrics.settings_reloaded(valid=False)
    assert series(metrics.text()).keys() == before


def test_each_exposition_reads_the_levels_again() -> None:
    metrics = Metrics(WORDS)
    levels = [LEVELS, replace(LEVELS, connections=9, svid_expiry=NEVER)]
    metrics.watch(lambda: levels[0])
    first = series(metrics.text())
    assert first["vouchd_connections{}"] == 3
    assert first["vouchd_ready{}"] == 1
    assert first['vouchd_streams{method="FetchX509SVID"}'] == 2
    assert first['vouchd_authority_expiry_timestamp_seconds{kind="jwt"}'] == 3e9
    assert first['vouchd_weak_proofs_total{weakness="no_pidfs"}'] == 4
    del levels[0]
    second = series(metrics.text())
    assert second["vouchd_connections{}"] == 9
    assert math.isnan(second["vouchd_svid_expiry_timestamp_seconds{}"])
    assert second.keys() == first.keys()


def test_build_and_process_metrics_exist() -> None:
    found = series(made().text())
    assert found['vouchd_build_info{version="1.2.3"}'] == 1
    assert 0 < found["process_open_fds{}"] < found["process_max_fds{}"]
    assert found["process_resident_memory_bytes{}"] > 1e6


def test_instances_count_separately() -> None:
    one, other = made(), made()
    one.refused(Refused.SILENT)
    assert series(other.text())['vouchd_refusals_total{reason="silent"}'] == 0


def test_a_stopwatch_times_a_block_that_raises() -> None:
    metrics = made()
    with pytest.raises(ZeroDivisionError), Stopwatch(metrics, Stage.SEND):
        raise ZeroDivisionError
    found = series(metrics.text())
    assert found['vouchd_stage_duration_seconds_count{stage="send"}'] == 1


def test_no_signals_discards_all_reports() -> None:
    with Stopwatch(NO_SIGNALS, Stage.SEND):
        pass
    NO_SIGNALS.attested("unix", 1.0, failed=True)
    NO_SIGNALS.waited()
    NO_SIGNALS.refused(Refused.OTHER)
    NO_SIGNALS.ended("FetchX509SVID", "OK")
    assert not vars(NO_SIGNALS), "it keeps nothing"
