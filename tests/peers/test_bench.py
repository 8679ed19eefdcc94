"""The results file and the page that has the table."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.bench.findings import RefusedError
from tests.peers import bench, record
from tests.peers.rows import Result

OPEN = {"open": Result(ours=[1.0], peer=[2.0])}
JWT = {"jwt": Result(ours=[3.0], peer=[4.0])}
MONDAY, TUESDAY = date(2026, 11, 30), date(2026, 12, 1)


def test_new_run_replaces_the_rows_that_it_measured(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    first = record.known_or_new(path, "agent 1").with_results({**OPEN, **JWT}, MONDAY)
    record.write(first, path)
    record.write(record.known_or_new(path, "agent 2").with_results(OPEN, TUESDAY), path)
    known = record.read(path)
    assert {key: each.day for key, each in known.rows.items()} == {"open": TUESDAY, "jwt": MONDAY}
    assert known.rows["jwt"].result == JWT["jwt"]
    assert "2026-11-30, 2026-12-01" in known.sources
    assert "agent 2" in known.sources


def test_other_file_is_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text("{}")
    with pytest.raises(RefusedError, match="is no results file"):
        record.known_or_new(path, "agent")


def test_table_is_written_below_the_heading_of_the_page(tmp_path: Path) -> None:
    results, page = tmp_path / "r.json", tmp_path / "page.md"
    record.write(record.known_or_new(results, "agent 1").with_results(OPEN, MONDAY), results)
    page.write_text(f"before\n\n{bench.HEADING}\nold\n\n## After\n")
    command = ["table", "--results", str(results), "--page", str(page)]
    for _ in range(2):
        assert CliRunner().invoke(bench.main, command).exit_code == 0
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("|\n\n## After\n")
    assert "old" not in text
    assert text.count("| FetchX509SVID on an open connection, CPU | 1 µs | 2 µs | 0.5 |") == 1


def test_page_without_the_heading_is_refused() -> None:
    with pytest.raises(RefusedError, match="lacks the heading"):
        bench.placed("text\n", "table")
