"""Rate limits per key, and below a common limit."""

from __future__ import annotations

from agent.rate_limit import KEYS, RateLimit, SharedRateLimit, Suppressed


def test_a_burst_passes_and_then_one_per_interval() -> None:
    limit = RateLimit(burst=3, seconds=10)
    assert [limit.take("a", 0.0) for _ in range(5)] == [0, 0, 0, None, None]
    assert limit.take("a", 9.9) is None
    assert limit.take("a", 10.1) == 3, "the number of refusals is reported"
    assert limit.take("a", 10.2) is None
    assert limit.take("a", 1000.0) == 1


def test_each_key_has_its_own_limit() -> None:
    limit = RateLimit(burst=1, seconds=10)
    assert limit.take("a", 0.0) == 0
    assert limit.take("b", 0.0) == 0
    assert limit.take("a", 0.0) is None


def test_a_pause_saves_up_no_more_than_a_burst() -> None:
    limit = RateLimit(burst=2, seconds=1)
    limit.take("a", 0.0)
    assert [limit.take("a", 1000.0) for _ in range(3)] == [0, 0, None]


def test_the_least_recently_used_key_is_forgotten() -> None:
    limit = RateLimit(burst=1, seconds=10)
    for key in range(KEYS):
        limit.take(key, 0.0)
    assert limit.take(0, 0.0) is None
    limit.take("one more", 0.0)
    assert limit.take(0, 0.0) is None, "it was used recently"
    assert limit.take(1, 0.0) == 0, "it was forgotten"


def test_the_common_limit_holds_and_every_refusal_is_reported_once() -> None:
    limit = SharedRateLimit(RateLimit(burst=2, seconds=10), RateLimit(burst=3, seconds=1))
    assert limit.take("a", 0) == Suppressed(0, 0)
    assert limit.take("a", 0) == Suppressed(0, 0)
    assert limit.take("a", 0) is None  # its own limit
    assert limit.take("b", 0) == Suppressed(0, 0)
    assert limit.take("b", 0) is None  # the common limit
    assert limit.take("b", 0) is None  # its own limit
    assert limit.take("c", 0) is None  # the common limit
    assert limit.take("c", 1) == Suppressed(0, 2)
    assert limit.take("b", 20) == Suppressed(1, 0)
    assert limit.take("a", 20) == Suppressed(1, 0)
