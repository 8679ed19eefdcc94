"""The fair queue on an event loop whose time the test moves."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count
from typing import Any, cast

import pytest

from agent.kernel.account import Account
from agent.limits.fair_queue import (
    BURST_SECONDS,
    CONNECT_READS,
    PATIENCE_SECONDS,
    READ_BYTES,
    READS_PER_QUANTUM,
    SMALL_READ_BYTES,
    TINY_READ_BYTES,
    TINY_READS,
    FairQueue,
    Lane,
)
from agent.rate_limit import KEYS
from agent.signals import NO_SIGNALS, NoSignals, Signals

ALICE = Account(1001, "a.service")


class Loop:
    """The part of an event loop that lanes use; time stands still until `run`."""

    def __init__(self) -> None:
        self.now = 100.0
        self._timers: list[tuple[float, int, Callable[[], object]]] = []
        self._order = count()

    def time(self) -> float:
        return self.now

    def call_later(self, delay: float, callback: Callable[[], object]) -> None:
        heapq.heappush(self._timers, (self.now + delay, next(self._order), callback))

    def call_soon(self, callback: Callable[[], object]) -> None:
        self.call_later(0.0, callback)

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self._timers and self._timers[0][0] <= end:
            self.now, _, callback = heapq.heappop(self._timers)
            callback()
        self.now = end


class Client:
    """A client that always has more to send, `requests` in each read; the server begins at once."""

    def __init__(self, lane: Lane, requests: int, *, begins: bool = True) -> None:
        self.passed = 0
        self._lane = lane
        self._requests = requests
        self._begins = begins

    def send(self) -> None:
        while self._lane.pass_or_wait(self._resume):
            self._read()

    def _resume(self) -> None:
        self._read()
        self.send()

    def _read(self) -> None:
        self.passed += 1
        self._lane.note_read(self._requests, self._requests)
        for _ in range(self._requests if self._begins else 0):
            self._lane.note_begun()


@pytest.fixture
def loop() -> Loop:
    return Loop()


def fair_queue(loop: Loop, rate: float, signals: Signals = NO_SIGNALS) -> FairQueue:
    return FairQueue(cast("Any", loop), rate, signals)


def test_a_lane_gets_half_of_its_users_rate_in_the_long_run(loop: Loop) -> None:
    client = Client(fair_queue(loop, 100).lane(ALICE), 1)
    client.send()
    loop.run(10 * BURST_SECONDS)
    burst, rest = 50 * BURST_SECONDS, 50 * 10 * BURST_SECONDS
    assert client.passed == pytest.approx((burst + rest) / 1.05, rel=0.01)


def test_the_cgroups_of_a_user_share_its_rate(loop: Loop) -> None:
    queue = fair_queue(loop, 100)
    clients = [Client(queue.lane(Account(1001, f"{n}.service")), 1) for n in range(8)]
    for client in clients:
        client.send()
    loop.run(10 * BURST_SECONDS)
    assert sum(c.passed for c in clients) == pytest.approx(
        100 * 11 * BURST_SECONDS / 1.05, rel=0.02
    )
    assert min(c.passed for c in clients) > 0


def test_the_users_of_one_cgroup_share_its_rate_and_slow_no_other_cgroup(loop: Loop) -> None:
    queue = fair_queue(loop, 100)
    users = [Client(queue.lane(Account(uid, "rootless")), 1) for uid in range(2000, 2100)]
    for client in users:
        client.send()
    loop.run(2 * BURST_SECONDS)
    assert sum(c.passed for c in users) < 100 * 3 * BURST_SECONDS + len(users)
    assert queue.lane(ALICE).pass_or_wait(lambda: None)


def test_frames_without_requests_are_charged(loop: Loop) -> None:
    client = Client(fair_queue(loop, 100).lane(ALICE), 0)
    client.send()
    loop.run(10 * BURST_SECONDS)
    assert client.passed < 50 * 11 * BURST_SECONDS / 0.05 * 1.01


def test_a_lane_waits_until_the_server_has_begun_with_its_requests(loop: Loop) -> None:
    lane = fair_queue(loop, 1e6).lane(ALICE)
    resumed: list[int] = []
    assert lane.pass_or_wait(lambda: None)
    lane.note_read(3, 3)
    assert not lane.pass_or_wait(lambda: resumed.append(1))
    lane.note_begun()
    lane.note_begun()
    loop.run(0.002)
    assert not resumed
    lane.note_begun()
    loop.run(0.0)
    assert resumed == [1]


def test_an_incomplete_request_does_not_make_its_lane_wait(loop: Loop) -> None:
    lane = fair_queue(loop, 1e6).lane(ALICE)
    assert lane.pass_or_wait(lambda: None)
    lane.note_read(1, 0)
    assert lane.pass_or_wait(lambda: None)
    lane.note_read(0, 1)
    assert not lane.pass_or_wait(lambda: None)


def test_reads_too_small_for_a_request_pass_a_few_times(loop: Loop) -> None:
    """A client answers the server's first frames while its first request is on its way."""
    lane = fair_queue(loop, 1e6).lane(ALICE)
    assert lane.pass_or_wait(lambda: None)
    lane.note_read(1, 1)
    for _ in range(2):
        for _ in range(TINY_READS):
            assert lane.pass_or_wait(lambda: None, lambda: TINY_READ_BYTES)
            lane.note_read(0, 0)
        lane.note_begun()
        lane.note_read(1, 1)
    for _ in range(TINY_READS):
        assert lane.pass_or_wait(lambda: None, lambda: 0)
    assert not lane.pass_or_wait(lambda: None, lambda: TINY_READ_BYTES)


def test_calls_in_tiny_pieces_do_not_accumulate(loop: Loop) -> None:
    """The server begins with each of them, but with fewer than arrive."""
    lane = fair_queue(loop, 1e6).lane(ALICE)
    unbegun = most = 0
    for number in range(1000):
        if lane.pass_or_wait(lambda: None, lambda: TINY_READ_BYTES):
            lane.note_read(1, 1)
            unbegun += 1
        if number % 3 == 2 and unbegun:
            lane.note_begun()
            unbegun -= 1
        most = max(most, unbegun)
        loop.now += 0.0002
    assert most <= 1 + TINY_READS


def test_a_tiny_read_is_bounded_to_tiny_bytes(loop: Loop) -> None:
    lane = fair_queue(loop, 1e6).lane(ALICE)
    assert lane.pass_or_wait(lambda: None, lambda: 9)
    assert lane.read_bytes == READ_BYTES
    lane.note_read(1, 1)
    assert lane.pass_or_wait(lambda: None, lambda: 9)
    assert lane.read_bytes == TINY_READ_BYTES
    lane.note_begun()
    assert lane.pass_or_wait(lambda: None, lambda: 9)
    assert lane.read_bytes == READ_BYTES


def test_a_read_that_may_hold_a_request_waits_and_all_reads_behind_it_too(loop: Loop) -> None:
    lane = fair_queue(loop, 1e6).lane(ALICE)
    assert lane.pass_or_wait(lambda: None)
    lane.note_read(1, 1)
    assert not lane.pass_or_wait(lambda: None, lambda: TINY_READ_BYTES + 1)
    assert not lane.pass_or_wait(lambda: None, lambda: TINY_READ_BYTES)


def test_reads_are_smaller_while_connections_wait(loop: Loop) -> None:
    lane = fair_queue(loop, 1e6).lane(ALICE)
    assert lane.read_bytes == READ_BYTES
    lane.pass_or_wait(lambda: None)
    lane.note_read(1, 1)
    lane.pass_or_wait(lambda: None)
    assert lane.read_bytes == SMALL_READ_BYTES
    loop.run(1.1)
    assert lane.read_bytes == READ_BYTES


def test_a_request_with_which_the_server_never_begins_delays_its_lane_briefly(loop: Loop) -> None:
    client = Client(fair_queue(loop, 1e6).lane(ALICE), 1, begins=False)
    client.send()
    loop.run(1.0)
    assert client.passed == pytest.approx(1.0 / PATIENCE_SECONDS, abs=2)


def test_a_quantum_holds_a_few_reads_and_fewer_connects(loop: Loop) -> None:
    lane = fair_queue(loop, 1e6).lane(ALICE)
    client = Client(lane, 0)
    client.send()
    assert client.passed == READS_PER_QUANTUM
    loop.run(0.0101)
    assert client.passed <= 12 * READS_PER_QUANTUM
    other = fair_queue(loop, 1e6).lane(ALICE)
    connects = 0
    while other.pass_or_wait(lambda: None):
        other.note_connection()
        connects += 1
    assert connects == READS_PER_QUANTUM / CONNECT_READS


def test_waiting_connections_resume_in_their_order(loop: Loop) -> None:
    lane = fair_queue(loop, 1e6).lane(ALICE)
    order: list[str] = []

    def resumed_as(name: str) -> Callable[[], None]:
        def resume() -> None:
            order.append(name)
            lane.note_read(1, 1)

        return resume

    assert lane.pass_or_wait(lambda: None)
    lane.note_read(1, 1)
    for name in "abc":
        assert not lane.pass_or_wait(resumed_as(name))
    for _ in range(3):
        lane.note_begun()
        loop.run(0.0)
    assert order == ["a", "b", "c"]


def test_a_connection_that_raises_does_not_stop_its_lane(loop: Loop) -> None:
    lane = fair_queue(loop, 10).lane(ALICE)
    lane.note_read(1, 1)
    resumed: list[None] = []

    def fail() -> None:
        raise OSError("out of everything")

    assert not lane.pass_or_wait(fail)
    assert not lane.pass_or_wait(lambda: resumed.append(None))
    with pytest.raises(OSError, match="out of everything"):
        loop.run(1.0)
    loop.run(1.0)
    assert resumed == [None]


def test_a_wait_for_tokens_is_reported_once_and_a_wait_for_a_turn_is_not(
    loop: Loop,
) -> None:
    waits: list[None] = []

    class Waits(NoSignals):
        def waited(self) -> None:
            waits.append(None)

    lane = fair_queue(loop, 10, Waits()).lane(ALICE)
    while lane.pass_or_wait(lambda: None):
        lane.note_read(0, 0)
    assert not waits
    loop.run(0.1)
    lane.note_read(1000, 1000)
    lane.note_begun()
    loop.run(0.1)
    for _ in range(3):
        assert not lane.pass_or_wait(lambda: None)
    assert len(waits) == 1


def test_all_connections_of_an_account_share_a_lane_that_ends_with_the_last(loop: Loop) -> None:
    queue = fair_queue(loop, 10)
    lane = queue.lane(ALICE)
    assert queue.lane(Account(1001, "a.service")) is lane
    assert queue.lane(Account(1001, "b.service")) is not lane
    del lane
    assert not queue._lanes


def test_the_bucket_of_a_connected_user_is_not_forgotten_for_new_users() -> None:
    """Otherwise a user with many cgroups could get a full bucket as often as it likes."""
    loop = Loop()
    fair_queue = FairQueue(cast("Any", loop), 10.0, NO_SIGNALS)
    here = fair_queue.lane(ALICE)
    for _ in range(int(20 * BURST_SECONDS)):
        here.note_read(1, 1)
    for number in range(2 * KEYS):
        fair_queue.lane(Account(number + 5000, f"{number}.service"))
    again = fair_queue.lane(Account(ALICE.uid, "b.service"))
    loop.run(1.0)
    assert not again.pass_or_wait(lambda: None)
