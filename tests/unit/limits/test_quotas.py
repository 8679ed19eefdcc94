"""Quotas: their shares per user and cgroup, and their refusals."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from agent.kernel.account import Account, Scope
from agent.limits.quotas import REASONS, OverLimitError, Quota, Resource
from tests.support.fakes import quotas

ALICE, BOB = 1001, 1002


def full(quota: Quota, account: Account) -> tuple[int, str]:
    """Return how many the quota admits, and the reason of its refusal."""
    for number in range(1000):
        try:
            quota.acquire(account)
        except OverLimitError as error:
            return number, error.reason
    raise AssertionError("the quota has no bound")


def test_one_container_leaves_half_of_its_users_quota_to_the_others() -> None:
    quota = Quota(Resource.STREAMS, most=100, per_user=20)
    assert full(quota, Account(ALICE, "a")) == (10, "streams_of_user_in_cgroup")
    assert full(quota, Account(ALICE, "b")) == (10, "streams_of_user_in_cgroup")
    assert full(quota, Account(ALICE, "c")) == (0, "streams_of_user")
    assert full(quota, Account(BOB, "c")) == (10, "streams_of_user_in_cgroup")


def test_all_users_of_one_cgroup_share_the_quota_of_one_user() -> None:
    quota = Quota(Resource.STREAMS, most=100, per_user=20)
    taken = [full(quota, Account(uid, "rootless"))[0] for uid in range(100_000, 100_010)]
    assert sum(taken) == 20
    assert full(quota, Account(ALICE, "rootless")) == (0, "streams_of_cgroup")
    assert full(quota, Account(ALICE, "elsewhere"))[0] == 10


def test_a_process_in_the_root_cgroup_counts_for_its_user_alone() -> None:
    quota = Quota(Resource.STREAMS, most=100, per_user=20)
    assert full(quota, Account(ALICE, "")) == (10, "streams_of_user_in_cgroup")
    assert full(quota, Account(BOB, "")) == (10, "streams_of_user_in_cgroup")


def test_all_accounts_together_have_a_bound() -> None:
    quota = Quota(Resource.STREAMS, most=15, per_user=20)
    assert full(quota, Account(ALICE, "a"))[0] == 10
    assert full(quota, Account(BOB, "b")) == (5, "streams_of_all")


def test_a_released_account_makes_room_and_takes_no_memory() -> None:
    quota = Quota(Resource.STREAMS, most=2, per_user=2)
    for number in range(1000):
        account = Account(number, f"{number}.service")
        quota.acquire(account)
        quota.release(account)
    assert not quota._counts
    assert full(quota, Account(ALICE, "a")) == (1, "streams_of_user_in_cgroup")


def test_a_refusal_is_not_counted() -> None:
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


def test_calls_are_counted_in_one_step_whatever_their_method() -> None:
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


def test_each_refusal_names_the_resource_and_the_scope() -> None:
    errors = [OverLimitError(kind, scope) for kind in Resource for scope in Scope]
    assert len({str(error) for error in errors}) == len(errors)
    assert all(str(error).endswith("; try again later") for error in errors)
    assert tuple(error.reason for error in errors) == REASONS


def test_bytes_over_the_quota_are_refused_and_not_counted() -> None:
    counts, alice = quotas(buffer_bytes=100), Account(ALICE, "a")
    counts.buffer_bytes(alice, 0, 50)
    with pytest.raises(OverLimitError, match="bytes of unfinished requests") as refused:
        counts.buffer_bytes(alice, 0, 1)
    assert refused.value.reason == "buffer_bytes_of_user_in_cgroup"
    counts.buffer_bytes(alice, 50, 0)
    counts.buffer_bytes(alice, 0, 50)
