"""So much at once, and then one at a time."""

from __future__ import annotations

import pytest

from agent import limits
from agent.limits import RateLimit


def test_a_burst_and_then_one_each_time() -> None:
    limit = RateLimit(burst=3, seconds=10)
    assert [limit.take("a", 0.0) for _ in range(5)] == [0, 0, 0, None, None]
    assert limit.take("a", 9.9) is None
    assert limit.take("a", 10.1) == 3, "it tells how often it was refused"
    assert limit.take("a", 10.2) is None
    assert limit.take("a", 1000.0) == 1


def test_keys_do_not_share() -> None:
    limit = RateLimit(burst=1, seconds=10)
    assert limit.take("a", 0.0) == 0
    assert limit.take("b", 0.0) == 0
    assert limit.take("a", 0.0) is None


def test_silence_does_not_save_up_more_than_a_burst() -> None:
    limit = RateLimit(burst=2, seconds=1)
    limit.take("a", 0.0)
    assert [limit.take("a", 1000.0) for _ in range(3)] == [0, 0, None]


def test_many_keys_take_no_more_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "KEYS", 10)
    limit = RateLimit(burst=1, seconds=1)
    for key in range(100):
        limit.take(key, 0.0)
    assert len(limit._buckets) == 10
