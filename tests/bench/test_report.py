"""The results file of several benchmark runs, and the plot of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.bench import calls, plot, storm
from tests.bench.findings import OURS, Budget, Finding, RefusedError
from tests.bench.report import read, require_writable, show, write


def finding(
    value: float, *, scenario: str = calls.FETCH.name, measure: str = calls.CPU, size: int = 1
) -> Finding:
    values = {OURS: [value, 2 * value]}
    return Finding(scenario=scenario, measure=measure, size=size, values=values)


def test_later_run_replaces_only_its_own_measures(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write([finding(1.0), finding(2.0, size=10)], path, "first")
    write([finding(3.0), finding(4.0, scenario="another")], path, "second")
    kept = {
        each.key[::2]: (each.servers[OURS].values[0], each.commit) for each in read(path).findings
    }
    assert kept == {
        (calls.FETCH.name, 1): (3.0, "second"),
        (calls.FETCH.name, 10): (2.0, "first"),
        ("another", 1): (4.0, "second"),
    }
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_finding_without_a_commit_gets_the_commit_of_its_machine(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write([finding(1.0)], path, "old")
    content = json.loads(path.read_text())
    del content["findings"][0]["commit"]
    path.write_text(json.dumps(content))
    write([finding(1.0, size=2)], path, "new")
    assert [each.commit for each in read(path).findings] == ["old", "new"]


@pytest.mark.parametrize("text", ["", "{", "{}", '{"findings": []}', "[1]"])
def test_file_without_results_is_not_replaced(tmp_path: Path, text: str) -> None:
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(RefusedError, match="remove it") as refused:
        require_writable(path)
    assert refused.value.exit_code == 2
    assert path.read_text() == text


def test_missing_folder_is_an_error_before_the_run(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match=r"cannot write .*/none/results\.json"):
        require_writable(tmp_path / "none" / "results.json")


def test_a_device_is_never_replaced() -> None:
    with pytest.raises(RefusedError, match="/dev/null is no regular file"):
        require_writable(Path("/dev/null"))


def test_budget_without_a_measured_value_is_an_error(
    capsys: pytest.CaptureFixture[str],
) -> None:
    budget = Budget(most=1.6, of_baseline=True)
    show([Finding(scenario="s", measure="m", size=1, values={OURS: [1.0]}, budget=budget)])
    assert "1.6 x not measured" in capsys.readouterr().out


def test_plot_has_only_calls_and_the_storm(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    of_storm = [
        finding(1.0, scenario=storm.SCENARIO, measure=measure, size=100)
        for measure in (storm.CPU, storm.P50, storm.LAST)
    ]
    write([finding(1.0), *of_storm, finding(1.0, scenario="x")], path, "c")
    drawn = [
        [(panel.scenario, panel.measure, len(panel.findings)) for panel in row]
        for row in plot.panels(read(path))
    ]
    of_calls = [(calls.CPU, 1), (calls.P50, 0), (calls.P99, 0)]
    assert drawn == [
        [(calls.FETCH.name, measure, count) for measure, count in of_calls],
        [(storm.SCENARIO, each, 1) for each in (storm.CPU, storm.P50, storm.LAST)],
    ]


def test_plotted_points_are_in_order_of_size(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write([finding(2.0, size=10), finding(1.0)], path, "c")
    assert plot.panels(read(path))[0][0].lines() == {
        OURS: [(1, 1.5, 1.0, 2.0), (10, 3.0, 2.0, 4.0)]
    }


@pytest.mark.parametrize(
    ("results", "picture", "why"),
    [
        ("none.json", "p.svg", "cannot read"),
        ("empty.json", "p.svg", "remove it"),
        ("other.json", "p.svg", "no calls"),
        ("other.json", "p.doc", "must end in .svg, .png, .pdf"),
        ("other.json", "none/p.svg", "no folder"),
    ],
)
def test_plot_error_has_one_line(tmp_path: Path, results: str, picture: str, why: str) -> None:
    (tmp_path / "empty.json").touch()
    write([finding(1.0, scenario="other")], tmp_path / "other.json", "c")
    outcome = CliRunner().invoke(plot.main, [str(tmp_path / results), str(tmp_path / picture)])
    assert (outcome.exit_code, len(outcome.output.splitlines())) == (2, 1)
    assert why in outcome.output
