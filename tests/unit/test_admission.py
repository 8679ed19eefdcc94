"""Whom something is put down to, and how much of it is too much."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from agent.admission import REASONS, Kind, Occupancy, OverLimitError, Place, Scope, cgroup_of
from tests.support.fakes import admission

ID = "a" * 64
ALICE, BOB = 1001, 1002


@pytest.mark.parametrize(
    ("text", "cgroup"),
    [
        (b"0::/\n", ""),
        (b"", ""),
        (b"nonsense\n", ""),
        (b"0::/system.slice/web.service\n", "system.slice/web.service"),
        (b"0::/system.slice/web.service/made/by/web\n", "system.slice/web.service"),
        (
            b"0::/user.slice/user-1000.slice/user@1000.service/app.slice/a.scope\n",
            "user.slice/user-1000.slice",
        ),
        (b"0::/user.slice/user-1000.slice/session-3.scope\n", "user.slice/user-1000.slice"),
        (f"0::/docker/{ID}/docker/{ID}\n".encode(), f"docker/{ID}"),
        (f"0::/kubepods/pod1/{ID}/init.scope\n".encode(), f"kubepods/pod1/{ID}"),
        (
            f"0::/kubepods.slice/kubepods-pod1.slice/cri-containerd-{ID}.scope/x\n".encode(),
            f"kubepods.slice/kubepods-pod1.slice/cri-containerd-{ID}.scope",
        ),
        (b"0::/lxc.payload.web/system.slice/made.service\n", "lxc.payload.web"),
        (b"0::/lxc/101/ns/made/by/its/root\n", "lxc/101"),
        # Version 1 and hybrid: where systemd has its own hierarchy, that one.
        (
            b"4:memory:/a\n1:name=systemd:/system.slice/b.service/c\n0::/\n",
            "system.slice/b.service",
        ),
        (b"4:memory:/a/b\n3:cpu,cpuacct:/\n", "a/b"),
        (b"0::/\xff.service/x\n", "\udcff.service"),
    ],
)
def test_the_cgroup_ends_where_those_who_run_there_could_make_more(
    text: bytes, cgroup: str
) -> None:
    assert cgroup_of(text) == cgroup


def full(occupancy: Occupancy, place: Place) -> tuple[int, str]:
    """How many it takes until it is too much, and why."""
    for number in range(1000):
        try:
            occupancy.enter(place)
        except OverLimitError as error:
            return number, error.reason
    raise AssertionError("there is no end")


def test_one_container_leaves_half_to_the_others_of_its_user() -> None:
    occupancy = Occupancy(Kind.STREAMS, most=100, per_user=20)
    assert full(occupancy, Place(ALICE, "a")) == (10, "streams_of_user_in_cgroup")
    assert full(occupancy, Place(ALICE, "b")) == (10, "streams_of_user_in_cgroup")
    assert full(occupancy, Place(ALICE, "c")) == (0, "streams_of_user")
    assert full(occupancy, Place(BOB, "c")) == (10, "streams_of_user_in_cgroup")


def test_many_users_in_one_cgroup_have_together_what_one_user_has() -> None:
    occupancy = Occupancy(Kind.STREAMS, most=100, per_user=20)
    taken = [full(occupancy, Place(uid, "rootless"))[0] for uid in range(100_000, 100_010)]
    assert sum(taken) == 20
    assert full(occupancy, Place(ALICE, "rootless")) == (0, "streams_of_cgroup")
    assert full(occupancy, Place(ALICE, "elsewhere"))[0] == 10


def test_without_a_cgroup_the_user_counts() -> None:
    occupancy = Occupancy(Kind.STREAMS, most=100, per_user=20)
    assert full(occupancy, Place(ALICE, "")) == (10, "streams_of_user_in_cgroup")
    assert full(occupancy, Place(BOB, "")) == (10, "streams_of_user_in_cgroup")


def test_there_is_an_end_for_all_together() -> None:
    occupancy = Occupancy(Kind.STREAMS, most=15, per_user=20)
    assert full(occupancy, Place(ALICE, "a"))[0] == 10
    assert full(occupancy, Place(BOB, "b")) == (5, "streams_of_all")


def test_who_leaves_makes_room_and_leaves_nothing_behind() -> None:
    occupancy = Occupancy(Kind.STREAMS, most=2, per_user=2)
    for number in range(1000):
        place = Place(number, f"{number}.service")
        occupancy.enter(place)
        occupancy.leave(place)
    assert not occupancy._counts
    assert full(occupancy, Place(ALICE, "a")) == (1, "streams_of_user_in_cgroup")


def test_a_refusal_takes_no_room() -> None:
    admits = admission(streams=1)
    place = Place(ALICE, "a")
    with ExitStack() as stack:
        stack.enter_context(admits.stream(place))
        for _ in range(3):
            with pytest.raises(OverLimitError) as refused, admits.stream(place):
                pass
            assert refused.value.reason == "streams_of_all"
    with admits.stream(place):
        pass


def test_calls_count_whatever_they_are_for_and_in_one_step() -> None:
    admits = admission(streams=2, attestations=1)
    place = Place(ALICE, "a")
    admits.calls(place, 0, 2)
    with pytest.raises(OverLimitError) as refused:
        admits.calls(place, 2, 4)
    assert refused.value.reason == "calls_of_all"
    admits.calls(place, 2, 2)
    admits.calls(place, 2, 3)
    admits.calls(place, 3, 1)
    admits.calls(Place(BOB, "b"), 0, 2)
    admits.calls(place, 1, 0)
    admits.calls(Place(BOB, "b"), 2, 0)
    assert not admits._calls._counts


def test_each_refusal_says_of_what_and_whose_there_are_too_many() -> None:
    errors = [OverLimitError(kind, scope) for kind in Kind for scope in Scope]
    assert len({str(error) for error in errors}) == len(errors)
    assert all(str(error).endswith("; try again later") for error in errors)
    assert tuple(error.reason for error in errors) == REASONS
