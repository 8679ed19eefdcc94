"""Text and durations in configuration files."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from agent.config.values import as_text, format_duration, long_enough, parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("5m", 300), ("24h", 86400), ("7d", 604800), ("3650d", 315360000)],
)
def test_duration_is_a_number_with_a_unit(text: str, seconds: int) -> None:
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("3651d", "longer than 3650d"),
        ("1h30m", "is not a duration"),
        ("1H", "is not a duration"),
        ("1 h", "is not a duration"),
        ("٣h", "is not a duration"),
        ("9" * 5000 + "d", "is not a duration"),
        ("0m", "must be positive"),
        (90, "90 has no unit"),
        (1.5, "must be text"),
        (True, "truth value"),
    ],
)
def test_bad_duration_is_refused_with_the_reason(value: object, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_duration(value)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(1, "1s"), (60, "1m"), (90, "90s"), (7200, "2h"), (86400, "1d"), (1.9, "1s")],
)
def test_duration_prints_in_its_largest_unit(seconds: float, text: str) -> None:
    assert format_duration(timedelta(seconds=seconds)) == text


def test_ttl_too_short_to_renew_an_svid_in_is_refused() -> None:
    assert long_enough(timedelta(seconds=2)) == timedelta(seconds=2)
    with pytest.raises(ValueError, match="1s is too short to renew an SVID in: give 2s or more"):
        long_enough(timedelta(seconds=1))


@pytest.mark.parametrize("value", ["", None, True, 1, 1.5, [], {}, {1}])
def test_other_types_and_empty_text_are_not_text(value: Any) -> None:
    with pytest.raises(ValueError, match=r"is empty|has no value|must be text"):
        as_text(value)
