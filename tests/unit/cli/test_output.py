"""Answers as text and as JSON."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from agent.cli.output import Data, printable, relative, to_json
from agent.cli.text import to_text

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def test_text_has_labels_with_blanks_and_no_empty_members() -> None:
    data: Data = {
        "spiffe_id": "spiffe://td/x",
        "hint": "",
        "serving": True,
        "inner": {"n": 1},
        "many": [{"a": 1, "bc": "x"}, {}],
    }
    assert to_text(data, NOW).plain.splitlines() == [
        "spiffe id  spiffe://td/x",
        "serving    yes",
        "inner",
        "  n  1",
        "many",
        "  - a   1",
        "    bc  x",
        "  - ",
    ]


def test_a_short_list_is_on_one_line_and_a_long_one_is_not() -> None:
    assert to_text({"x": [1, 2]}, NOW).plain == "x  1, 2"
    long = ["a" * 60, "b" * 60]
    assert to_text({"x": long}, NOW).plain.splitlines() == [f"x  {long[0]}", f"   {long[1]}"]


def test_text_of_a_process_cannot_control_the_terminal() -> None:
    assert printable("a\x1b[2J\nb\udcff") == "a\\x1b[2J\\nb\\udcff"
    assert "\x1b" not in to_text({"x": "\x1b[2J"}, NOW).plain


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "in 0 seconds"),
        (1, "in 1 second"),
        (-59, "59 seconds ago"),
        (3599, "in 59 minutes"),
        (-7200, "2 hours ago"),
        (86400 * 3, "in 3 days"),
    ],
)
def test_a_time_has_its_distance_in_the_largest_unit(seconds: int, words: str) -> None:
    assert relative(NOW + timedelta(seconds=seconds), NOW) == words


def test_json_is_one_line_with_times_in_utc() -> None:
    east = NOW.astimezone(tz=None)
    assert to_json({"at": east, "x": "a\nb"}) == '{"at": "2026-01-02T03:04:05Z", "x": "a\\nb"}'
