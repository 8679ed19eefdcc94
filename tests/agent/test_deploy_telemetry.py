"""Dashboard, alerts and reference name what a running agent exports, and nothing else."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from agent.telemetry.metrics import NEVER, Levels, Metrics, Words
from tests.conftest import AgentFactory
from tests.support import promql, scrape

ROOT = Path(__file__).parents[2]
DASHBOARD = ROOT / "deploy/grafana/vouchd.json"
ALERTS = ROOT / "deploy/prometheus/alerts.yaml"
# Labels and metrics that Prometheus adds.
OF_THE_TARGET = {"instance", "job"}
OF_PROMETHEUS = "up"

Labels = Mapping[str, AbstractSet[str]]

LEVELS = Levels(
    ready=True,
    connections=0,
    streams={"FetchX509SVID": 0},
    svids={"x509": 0},
    svid_expiry=NEVER,
    authority_expiry={"x509": 1.0},
    authority_lifetime={"x509": 1.0},
    authority_failing=False,
)


@pytest.fixture
def exported(agent_factory: AgentFactory) -> dict[str, Labels]:
    """The exported metrics with their labels and label values."""
    agent = agent_factory(config="telemetry: {listen: t.sock}")
    return read(scrape.get(agent.directory / "t.sock", "/metrics")[1])


def read(text: str) -> dict[str, Labels]:
    found: dict[str, defaultdict[str, set[str]]] = {OF_PROMETHEUS: defaultdict(set)}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = found.setdefault(sample.name, defaultdict(set))
            for label, value in sample.labels.items():
                labels[label].add(value)
    return dict(found)


def panels() -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    return made


def rules() -> list[dict[str, Any]]:
    [group] = yaml.safe_load(ALERTS.read_text())["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def queries() -> Iterator[tuple[str, str]]:
    """Each expression with the text beside it, which may name labels."""
    for panel in panels():
        for target in panel.get("targets", ()):
            yield target["expr"], target["legendFormat"]
    for rule in rules():
        yield rule["expr"], " ".join(rule["annotations"].values())


def mistakes(expression: str, text: str, exported: Mapping[str, Labels]) -> list[str]:
    parts = promql.parse(expression)
    found, known = [], set(OF_THE_TARGET)
    for selected in parts.selected:
        if selected.metric not in exported:
            found.append(f"no metric {selected.metric}")
            continue
        labels = exported[selected.metric]
        known |= set(labels)
        for label, operator, value in selected.matchers:
            if label not in {*labels, *OF_THE_TARGET}:
                found.append(f"{selected.metric} has no label {label}")
            elif label in labels and not _matches(operator, value, labels[label]):
                found.append(f"{selected.metric} has no {label} {value}")
    if parts.grouped_by:
        found += [f"no label {label}" for label in parts.grouped_by - known]
        known = set(parts.grouped_by)
    named = re.findall(r"{{ *(?:\$labels\.)?([a-z]+) *}}", text)
    return found + [f"the text has no {label}" for label in set(named) - known]


def _matches(operator: str, value: str, values: AbstractSet[str]) -> bool:
    pattern = value if "~" in operator else re.escape(value)
    return any(re.fullmatch(pattern, each) for each in values)


def test_every_query_uses_exported_metrics_and_labels(exported: dict[str, Labels]) -> None:
    found = {expression: mistakes(expression, text, exported) for expression, text in queries()}
    assert len(found) > 30
    assert {expression: each for expression, each in found.items() if each} == {}
    used = {s.metric for e, _ in queries() for s in promql.parse(e).selected}
    stems = {re.sub(r"_(bucket|sum|count)$", "", name) for name in used}
    ours = {
        re.sub(r"_(bucket|sum|count)$", "", name) for name in exported if name.startswith("vouchd")
    }
    assert ours <= stems, "every exported metric is in the dashboard or in an alert"


@pytest.mark.parametrize(
    ("expression", "text", "mistake"),
    [
        ("rate(vouchd_call_total[5m])", "", "no metric vouchd_call_total"),
        ('vouchd_streams{mode="x"}', "", "vouchd_streams has no label mode"),
        ('vouchd_refusals_total{reason="nonsense"}', "", "has no reason nonsense"),
        ('vouchd_calls_total{code=~"OK|X.*", method=~"Y.*"}', "", "has no method Y.*"),
        ("sum by (uid) (rate(vouchd_calls_total[1h] offset 1h))", "", "no label uid"),
        ("sum by (code) (vouchd_calls_total)", "{{method}}", "the text has no method"),
        ("vouchd_ready == 0", "{{ $labels.kind }}", "the text has no kind"),
    ],
)
def test_a_query_of_an_unknown_metric_or_label_is_reported(
    expression: str, text: str, mistake: str
) -> None:
    metrics = Metrics(Words(methods=["FetchX509SVID"]))
    metrics.watch(lambda: LEVELS)
    [found] = mistakes(expression, text, read(metrics.text()))
    assert found.endswith(mistake)


def test_the_reference_names_exported_metrics(exported: dict[str, Labels]) -> None:
    text = (ROOT / "docs/reference/metrics.md").read_text()
    named = re.findall(r"`((?:vouchd|process)_[a-z0-9_]+)", text)
    assert len(named) > 10
    assert set(named) <= {*exported, *(name.removesuffix("_bucket") for name in exported)}


def test_every_alert_has_a_summary_and_a_description() -> None:
    for rule in rules():
        assert re.fullmatch(r"Vouchd[A-Za-z]+", rule["alert"])
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert {"summary", "description"} <= rule["annotations"].keys()


def test_the_panels_of_the_dashboard_do_not_overlap() -> None:
    made = panels()
    assert len({panel["id"] for panel in made}) == len(made)
    places = [tuple(panel["gridPos"][each] for each in "xywh") for panel in made]
    for number, (x, y, width, _height) in enumerate(places):
        assert x + width <= 24
        for other in places[:number]:
            apart = x >= other[0] + other[2] or other[0] >= x + width
            assert apart or y >= other[1] + other[3], f"{places[number]} lies over {other}"
