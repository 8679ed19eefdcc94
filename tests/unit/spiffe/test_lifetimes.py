"""Lifetimes: when SVIDs and authorities are replaced."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from agent.spiffe.lifetimes import handover, longest_svid, preparation, removal, renewal
from tests.vectors.pki.forge import NOW

SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
END = NOW + DAY


@pytest.mark.parametrize(("spread", "minutes"), [(-1, 27), (0, 30), (0.5, 31.5), (1, 33)])
def test_an_svid_is_renewed_at_half_of_its_lifetime_give_or_take_a_tenth(
    spread: float, minutes: float
) -> None:
    assert renewal(NOW, NOW + HOUR, spread) == NOW + minutes * MINUTE


def test_ten_thousand_svids_issued_at_once_are_renewed_over_six_minutes() -> None:
    due = [renewal(NOW, NOW + HOUR, i / 5000 - 1) for i in range(10_000)]
    busiest = max(sum(at <= each < at + SECOND for each in due[::37]) for at in due[::97])
    assert max(due) - min(due) > 5 * MINUTE
    assert busiest * 37 < 200


def test_no_svid_is_cut_short_by_its_authority() -> None:
    """An SVID that is signed right before the handover ends with its authority."""
    assert handover(NOW, END, preparation(NOW, END)) + longest_svid(DAY) == END


def test_a_successor_is_in_the_bundle_for_a_third_of_a_lifetime_before_it_signs() -> None:
    prepared = preparation(NOW, END)
    assert handover(NOW, END, prepared) - prepared == DAY / 3


@pytest.mark.parametrize(
    ("prepared", "signs"),
    [
        (END - HOUR, END - HOUR + 10 * SECOND),
        (END - 3 * SECOND, END - 2 * SECOND),
        (END + HOUR, END - 2 * SECOND),
    ],
    ids=["ten seconds later", "while the active one can sign", "overdue"],
)
def test_a_late_successor_signs_soon_and_before_the_end(
    prepared: datetime, signs: datetime
) -> None:
    assert handover(NOW, END, prepared) == signs


@pytest.mark.parametrize(
    ("retired", "svid", "leaves"),
    [
        (NOW + 20 * HOUR, 4 * HOUR, END + HOUR),
        (NOW + 3 * HOUR, 4 * HOUR, NOW + 8 * HOUR),
        (NOW + 20 * HOUR, 5 * DAY, END + HOUR),
    ],
    ids=["in its last sixth", "before its time", "SVIDs end with their authority"],
)
def test_an_authority_leaves_the_bundle_an_hour_after_its_last_svid(
    retired: datetime, svid: timedelta, leaves: datetime
) -> None:
    assert removal(NOW, END, retired, svid) == leaves
