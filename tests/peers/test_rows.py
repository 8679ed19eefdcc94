"""The table of the comparison: ratios, budgets and missed budgets."""

from __future__ import annotations

import pytest

from tests.peers.rows import ROWS, Result, Row, table

RATIO = Row(key="r", label="l", unit="µs", most=0.5)
ABSOLUTE = Row(key="a", label="l", unit="KiB", most=12, absolute=True)


def test_ratio_is_that_of_the_medians_and_its_spread_that_of_the_rounds() -> None:
    ratio = Result(ours=[1.0, 2.0, 30.0], peer=[4.0, 2.0, 10.0]).ratio
    assert ratio is not None
    assert (ratio.median, ratio.least, ratio.most) == (0.5, 0.25, 3.0)


@pytest.mark.parametrize("peer", [[], [0.0]])
def test_without_a_value_of_the_peer_there_is_no_ratio(peer: list[float]) -> None:
    result = Result(ours=[1.0], peer=peer)
    assert result.ratio is None
    assert result.within(RATIO) is None
    assert result.within(ABSOLUTE) is True


def test_budget_of_a_ratio_is_held_up_to_its_value() -> None:
    assert Result(ours=[1.0], peer=[2.0]).within(RATIO) is True
    assert Result(ours=[1.1], peer=[2.0]).within(RATIO) is False


def test_absolute_budget_ignores_the_peer() -> None:
    assert Result(ours=[13.0], peer=[100.0]).within(ABSOLUTE) is False


def test_missed_budget_is_marked_in_the_table() -> None:
    lines = table(
        {"open": Result(ours=[450, 500], peer=[1000, 1000]), "rest": Result(ours=[56.4])}
    ).splitlines()
    assert "475 µs | 1,000 µs | 0.475 (0.45 to 0.5) | 0.45, **missed** |" in lines[2]
    assert lines[3].endswith("| 56.4 MiB |  |  | 57 MiB |")


def test_rows_of_a_later_change_have_a_note() -> None:
    text = table({"small program": Result(ours=[1.0], peer=[2.0])})
    assert "CPU* |" in text
    assert "\n\\* The program evidence of today" in text


def test_keys_of_the_rows_are_unique() -> None:
    assert len({row.key for row in ROWS}) == len(ROWS)
