"""So much at once, and then one at a time."""

from __future__ import annotations

from agent.limits.rate_limit import KEYS, LeftOut, RateLimit, SharedRateLimit


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


def test_many_keys_take_no_more_room() -> None:
    limit = RateLimit(burst=1, seconds=10)
    for key in range(KEYS):
        limit.take(key, 0.0)
    assert limit.take(0, 0.0) is None
    limit.take("one more", 0.0)
    assert limit.take(0, 0.0) is None, "it was used since"
    assert limit.take(1, 0.0) == 0, "it was forgotten"


def test_all_keys_together_have_a_limit_too_and_no_count_is_lost() -> None:
    limit = SharedRateLimit(RateLimit(burst=2, seconds=10), RateLimit(burst=3, seconds=1))
    assert limit.take("a", 0) == LeftOut(0, 0)
    assert limit.take("a", 0) == LeftOut(0, 0)
    assert limit.take("a", 0) is None  # of its own
    assert limit.take("b", 0) == LeftOut(0, 0)
    assert limit.take("b", 0) is None  # of all
    assert limit.take("b", 0) is None  # of its own
    assert limit.take("c", 0) is None  # of all
    assert limit.take("c", 1) == LeftOut(0, 2)
    assert limit.take("b", 20) == LeftOut(1, 0)
    assert limit.take("a", 20) == LeftOut(1, 0)
