"""The table of docs/performance.md: measured values, budgets and missed budgets."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.bench import report, summary
from tests.bench.findings import BASELINE, OURS, Budget, Finding


def table(*findings: Finding, path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    report.write(findings, path, "abc")
    monkeypatch.setattr(summary, "RESULTS", path)
    outcome = CliRunner().invoke(summary.main, catch_exceptions=False)
    return outcome.output.splitlines()


def test_missed_budget_is_marked_in_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = Finding(
        scenario=summary.CALL,
        measure=summary.CPU,
        size=1,
        values={OURS: [300.0], BASELINE: [100.0]},
        budget=Budget(most=1.6, of_baseline=True),
    )
    idle = Finding(
        scenario=summary.STREAMS,
        measure="descriptors per stream",
        size=4000,
        values={OURS: [4.0], BASELINE: [1.0]},
        budget=Budget(most=4.0),
    )
    lines = table(call, idle, path=tmp_path / "r.json", monkeypatch=monkeypatch)
    assert (
        "| FetchX509SVID on an open connection, CPU | 300 µs | 100 µs | 3 |  | 1.6, **missed** |"
        in lines
    )
    assert "| … descriptors of each | 4 | 1 | 4 |  | 4 |" in lines
