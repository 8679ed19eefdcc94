"""Whom something is put down to, and how much of it is too much."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from agent.kernel.account import Account, Scope, cgroup_of
from agent.limits.quotas import REASONS, OverLimitError, Quota, Resource
from tests.support.fakes import quotas

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


def full(quota: Quota, account: Account) -> tuple[int, str]:
    """How many it takes until it is too much, and why."""
    for number in range(1000):
        try:
            quota.enter(account)
        except OverLimitError as error:
            return number, error.reason
    raise AssertionError("there is no end")


def test_one_container_leaves_half_to_the_others_of_its_user() -> None:
    quota = Quota(Resource.STREAMS, most=100, per_user=20)
    assert full(quota, Account(ALICE, "a")) == (10, "streams_of_user_in_cgroup")
    assert full(quota, Account(ALICE, "b")) == (10, "streams_of_user_in_cgroup")
    assert full(quota, Account(ALICE, "c")) == (0, "streams_of_user")
    assert full(quota, Account(BOB, "c")) == (10, "streams_of_user_in_cgroup")


def test_many_users_in_one_cgroup_have_together_what_one_user_has() -> None:
    quota = Quota(Resource.STREAMS, most=100, per_user=20)
    taken = [full(quota, Account(uid, "rootless"))[0] for uid in range(100_000, 100_010)]
    assert sum(taken) == 20
    assert full(quota, Account(ALICE, "rootless")) == (0, "streams_of_cgroup")
    assert full(quota, Account(ALICE, "elsewhere"))[0] == 10


def test_without_a_cgroup_the_user_counts() -> None:
    quota = Quota(Resource.STREAMS, most=100, per_user=20)
    assert full(quota, Account(ALICE, "")) == (10, "streams_of_user_in_cgroup")
    assert full(quota, Account(BOB, "")) == (10, "streams_of_user_in_cgroup")


def test_there_is_an_end_for_all_together() -> None:
    quota = Quota(Resource.STREAMS, most=15, per_user=20)
    assert full(quota, Account(ALICE, "a"))[0] == 10
    assert full(quota, Account(BOB, "b")) == (5, "streams_of_all")


def test_who_leaves_makes_room_and_leaves_nothing_behind() -> None:
    quota = Quota(Resource.STREAMS, most=2, per_user=2)
    for number in range(1000):
        account = Account(number, f"{number}.service")
        quota.enter(account)
        quota.leave(account)
    assert not quota._counts
    assert full(quota, Account(ALICE, "a")) == (1, "streams_of_user_in_cgroup")


def test_a_refusal_takes_no_room() -> None:
    admits = quotas(streams=1)
    account = Account(ALICE, "a")
    with ExitStack() as stack:
        stack.enter_context(admits.stream(account))
        for _ in range(3):
            with pytest.raises(OverLimitError) as refused, admits.stream(account):
                pass
            assert refused.value.reason == "streams_of_all"
    with admits.stream(account):
        pass


def test_calls_count_whatever_they_are_for_and_in_one_step() -> None:
    admits = quotas(streams=2, attestations=1)
    account = Account(ALICE, "a")
    admits.calls(account, 0, 2)
    with pytest.raises(OverLimitError) as refused:
        admits.calls(account, 2, 4)
    assert refused.value.reason == "calls_of_all"
    admits.calls(account, 2, 2)
    admits.calls(account, 2, 3)
    admits.calls(account, 3, 1)
    admits.calls(Account(BOB, "b"), 0, 2)
    admits.calls(account, 1, 0)
    admits.calls(Account(BOB, "b"), 2, 0)
    assert not admits._calls._counts


def test_each_refusal_says_of_what_and_whose_there_are_too_many() -> None:
    errors = [OverLimitError(kind, scope) for kind in Resource for scope in Scope]
    assert len({str(error) for error in errors}) == len(errors)
    assert all(str(error).endswith("; try again later") for error in errors)
    assert tuple(error.reason for error in errors) == REASONS
