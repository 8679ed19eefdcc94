"""Schedule: the latest moment of each key counts, and no key is lost."""

from __future__ import annotations

import datetime as dt

from hypothesis import given
from hypothesis import strategies as st

from agent.svids.schedule import SLACK, Schedule
from tests.support.fakes import START

SECOND = dt.timedelta(seconds=1)


def drain(schedule: Schedule[str], seconds: int) -> list[str]:
    due = iter(lambda: schedule.pop_due(START + seconds * SECOND), None)
    return [key for key in due if key is not None]


def schedule_of(**seconds: int) -> Schedule[str]:
    schedule: Schedule[str] = Schedule()
    for key, second in seconds.items():
        schedule.set(key, START + second * SECOND)
    return schedule


def test_keys_come_due_in_the_order_of_their_moments() -> None:
    schedule = schedule_of(late=3, early=1, middle=2)
    assert drain(schedule, 0) == []
    assert drain(schedule, 2) == ["early", "middle"]
    assert drain(schedule, 9) == ["late"]
    assert len(schedule) == 0


def test_a_new_moment_replaces_the_former() -> None:
    schedule = schedule_of(a=1, b=5)
    schedule.set("a", START + 3 * SECOND)
    schedule.set("b", START + 2 * SECOND)
    assert drain(schedule, 1) == []
    assert drain(schedule, 9) == ["b", "a"]


def test_set_no_later_only_brings_a_moment_forward() -> None:
    schedule = schedule_of(a=3)
    schedule.set_no_later("a", START + 5 * SECOND)
    schedule.set_no_later("b", START + 5 * SECOND)
    assert drain(schedule, 3) == ["a"]
    schedule.set_no_later("b", START + 4 * SECOND)
    assert drain(schedule, 4) == ["b"]


def test_a_cancelled_key_never_comes_due() -> None:
    schedule = schedule_of(a=1, b=1)
    schedule.cancel("a")
    schedule.cancel("unknown")
    assert "a" not in schedule
    assert drain(schedule, 9) == ["b"]


def test_a_reset_gives_every_key_its_new_moment() -> None:
    schedule = schedule_of(a=100, b=200, c=300)
    schedule.reset(lambda key: START if key == "c" else START + SECOND)
    assert drain(schedule, 0) == ["c"]
    assert drain(schedule, 1) == ["a", "b"]


def test_outdated_moments_take_no_lasting_memory() -> None:
    schedule = schedule_of(a=1)
    for second in range(1000):
        schedule.set("a", START + second * SECOND)
        assert schedule.heap_size <= 2 * len(schedule) + SLACK
    assert drain(schedule, 999) == ["a"]


def test_removing_outdated_moments_loses_no_key() -> None:
    names = [f"key{number}" for number in range(20)]
    schedule = schedule_of(**dict.fromkeys(names, 1))
    for second in range(1000):
        schedule.set("busy", START + second * SECOND)
    assert drain(schedule, 1) == names


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["set", "cancel", "pop"]), st.sampled_from("abcde"), st.integers(0, 9)
    ),
    max_size=200,
)


@given(OPERATIONS)
def test_schedule_equals_a_dict_that_is_searched_for_due_keys(
    operations: list[tuple[str, str, int]],
) -> None:
    schedule, model = schedule_of(), dict[str, int]()
    for operation, key, second in operations:
        if operation == "set":
            schedule.set(key, START + second * SECOND)
            model[key] = second
        elif operation == "cancel":
            schedule.cancel(key)
            model.pop(key, None)
        else:
            due = {key for key, at in model.items() if at <= second}
            assert set(drain(schedule, second)) == due
            model = {key: at for key, at in model.items() if key not in due}
        assert len(schedule) == len(model)
