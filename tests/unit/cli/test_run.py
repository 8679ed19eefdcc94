"""`vouchd check`, and `vouchd run` with invalid files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.cli import run


def test_check_counts_entries_and_succeeds_with_warnings(
    capsys: pytest.CaptureFixture[str], config: Path
) -> None:
    code, out, err = run(capsys, "check", "-c", config)
    entries = config.with_name("entries.yaml")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        f"{entries}:4:72: warning: expired at 2020-01-01T00:00:00+00:00: it matches nothing",
        "3 entries in 1 file are valid",
    ]


def test_check_reports_every_problem_with_its_place(
    capsys: pytest.CaptureFixture[str], config: Path
) -> None:
    entries = config.with_name("entries.yaml")
    entries.write_text("entries:\n  - {spiffe_id: x, selectors: []}\n  - {spiffe_id: /y}\n")
    code, out, _err = run(capsys, "check", "-c", config)
    assert code == 2
    places = [line.split(": ")[0] for line in out.splitlines()]
    assert places == [f"{entries}:2:17", f"{entries}:2:31", f"{entries}:3:5"]


def test_check_prints_json(capsys: pytest.CaptureFixture[str], config: Path) -> None:
    config.write_text("trust_domain: Example.org\nlogg: {}\n")
    code, out, _err = run(capsys, "check", "-c", config, "--output", "json")
    assert code == 2
    problems = json.loads(out)
    assert [(each["line"], each["column"], each["severity"]) for each in problems] == [
        (1, 15, "error"),
        (2, 1, "error"),
    ]
    assert all(each["file"] == str(config) and each["message"] for each in problems)


def test_run_prints_every_problem_of_its_files(
    capsys: pytest.CaptureFixture[str], config: Path
) -> None:
    config.write_text("trust_domain: Example.org\nlogg: {}\n")
    code, out, err = run(capsys, "run", "-c", config)
    assert (code, out) == (2, "")
    assert [line.rpartition(": ")[0].split(": ")[0] for line in err.splitlines()] == [
        f"{config}:1:15",
        f"{config}:2:1",
    ]
