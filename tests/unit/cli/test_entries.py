"""`vouchd entries` without an agent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.cli import run


def test_entries_list_keeps_the_order(capsys: pytest.CaptureFixture[str], config: Path) -> None:
    code, out, _err = run(capsys, "entries", "list", "-c", config, "--output", "json")
    assert code == 0
    listed = json.loads(out)["entries"]
    assert [entry["entry_id"] for entry in listed] == ["web", "job", "old"]
    assert listed[0]["spiffe_id"] == "spiffe://example.org/web"
    assert listed[0]["selectors"] == ["unix:path:/usr/bin/web", "unix:uid:1000"]
    assert listed[0]["origin"] == f"{config.with_name('entries.yaml')}:2"
    assert listed[2]["expires_at"] == "2020-01-01T00:00:00Z"


def test_match_prints_matching_and_nearest_entries(
    capsys: pytest.CaptureFixture[str], config: Path
) -> None:
    selectors = ["unix:uid:1000", "unix:path:/usr/bin/web", "unix:user:web"]
    code, out, _err = run(capsys, "entries", "match", "-c", config, *selectors, "--output", "json")
    assert code == 0
    answer = json.loads(out)
    assert [entry["entry_id"] for entry in answer["matched"]] == ["web"]
    assert [missed["entry_id"] for missed in answer["missed"]] == ["job"]
    assert answer["missed"][0]["lacking"] == [
        {"wanted": "unix:gid:7", "found": []},
        {"wanted": "unix:path:/usr/bin/job", "found": ["unix:path:/usr/bin/web"]},
    ]


def test_match_prints_the_missing_selectors_of_the_nearest_entries(
    capsys: pytest.CaptureFixture[str], config: Path
) -> None:
    code, out, err = run(capsys, "entries", "match", "-c", config, "unix:uid:1000", "unix:gid:7")
    assert code == 1
    assert err == "vouchd: no entry matches these selectors; the missing ones are above\n"
    assert "wanted  unix:path:/usr/bin/web" in out
    assert "wanted  unix:path:/usr/bin/job" in out
    assert "/old" not in out  # none of its selectors is there


def test_match_prints_that_an_entry_has_expired(
    capsys: pytest.CaptureFixture[str], config: Path
) -> None:
    code, out, _err = run(capsys, "entries", "match", "-c", config, "unix:uid:2000")
    assert code == 1
    assert "expired at  2020-01-01 00:00:00 UTC" in out


def test_match_refuses_text_that_is_no_selector(
    capsys: pytest.CaptureFixture[str], config: Path
) -> None:
    code, _out, err = run(capsys, "entries", "match", "-c", config, "1000")
    assert code == 2
    assert "selector '1000' is not of the form type:value, such as unix:uid:1000" in err
