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
    READ_BYTES,
    SLICE_SECONDS,
    SMALL_READ_BYTES,
    FairQueue,
    Lane,
)
from agent.rate_limit import KEYS
from agent.signals import NO_SIGNALS, NoSignals, Signals

ALICE, BOB = Account(1001, "a.service"), Account(1002, "b.service")
CHEAP = SLICE_SECONDS / 5


class Loop:
    """The part of an event loop that lanes use; time passes while it runs and as reads cost."""

    def __init__(self) -> None:
        self.now = 100.0
        self._timers: list[tuple[float, int, Callable[..., object], tuple[object, ...]]] = []
        self._order = count()

    def time(self) -> float:
        return self.now

    def call_later(self, delay: float, callback: Callable[..., object], *args: object) -> None:
        heapq.heappush(self._timers, (self.now + delay, next(self._order), callback, args))

    def call_soon(self, callback: Callable[..., object], *args: object) -> None:
        self.call_later(0.0, callback, *args)

    def turn(self) -> None:
        """Run what is due now, and nothing that it schedules."""
        due = []
        while self._timers and self._timers[0][0] <= self.now:
            due.append(heapq.heappop(self._timers))
        for _, _, callback, args in due:
            callback(*args)

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self._timers and self._timers[0][0] <= end:
            at, _, callback, args = heapq.heappop(self._timers)
            self.now = max(self.now, at)
            callback(*args)
        self.now = max(self.now, end)


class Client:
    """A client that always has more to send, `requests` in each read."""

    def __init__(self, loop: Loop, lane: Lane, requests: int = 1, cost: float = CHEAP) -> None:
        self.passed = 0
        self._loop = loop
        self._lane = lane
        self._requests = requests
        self._cost = cost

    def send(self) -> None:
        while self._lane.pass_or_wait(self._resume):
            self._read()

    def _resume(self) -> None:
        self._read()
        self.send()

    def _read(self) -> None:
        self.passed += 1
        self._loop.now += self._cost
        self._lane.note_read(self._requests)


@pytest.fixture
def loop() -> Loop:
    return Loop()


def fair_queue(loop: Loop, rate: float = 1e6, signals: Signals = NO_SIGNALS) -> FairQueue:
    return FairQueue(cast("Any", loop), rate, signals, clock=loop.time)


def test_a_lane_gets_half_of_its_users_rate_in_the_long_run(loop: Loop) -> None:
    client = Client(loop, fair_queue(loop, 100).lane(ALICE))
    client.send()
    loop.run(10 * BURST_SECONDS)
    burst, rest = 50 * BURST_SECONDS, 50 * 10 * BURST_SECONDS
    assert client.passed == pytest.approx((burst + rest) / 1.05, rel=0.01)


def test_the_cgroups_of_a_user_share_its_rate(loop: Loop) -> None:
    queue = fair_queue(loop, 100)
    clients = [Client(loop, queue.lane(Account(1001, f"{n}.service"))) for n in range(8)]
    for client in clients:
        client.send()
    loop.run(10 * BURST_SECONDS)
    assert sum(c.passed for c in clients) == pytest.approx(
        100 * 11 * BURST_SECONDS / 1.05, rel=0.02
    )
    assert min(c.passed for c in clients) > 0


def test_the_users_of_one_cgroup_share_its_rate_and_slow_no_other_cgroup(loop: Loop) -> None:
    queue = fair_queue(loop, 100)
    users = [Client(loop, queue.lane(Account(uid, "rootless"))) for uid in range(2000, 2100)]
    for client in users:
        client.send()
    loop.run(2 * BURST_SECONDS)
    assert sum(c.passed for c in users) < 100 * 3 * BURST_SECONDS + len(users)
    assert queue.lane(ALICE).pass_or_wait(lambda: None)


def test_frames_without_requests_are_charged(loop: Loop) -> None:
    client = Client(loop, fair_queue(loop, 100).lane(ALICE), requests=0)
    client.send()
    loop.run(10 * BURST_SECONDS)
    assert client.passed < 50 * 11 * BURST_SECONDS / 0.05 * 1.01


def test_a_lane_alone_uses_all_the_time(loop: Loop) -> None:
    client = Client(loop, fair_queue(loop).lane(ALICE))
    client.send()
    loop.run(1.0)
    assert client.passed == pytest.approx(1.0 / CHEAP, rel=0.01)


def test_a_lane_is_served_at_once_only_for_its_credit(loop: Loop) -> None:
    """The event loop comes round in between: it accepts connections and reads other sockets."""
    client = Client(loop, fair_queue(loop).lane(ALICE))
    client.send()
    slices = client.passed * CHEAP / SLICE_SECONDS
    assert slices <= 2.2
    for number in range(1, 10):
        loop.turn()
        assert client.passed * CHEAP / SLICE_SECONDS <= 2.2 + 1.2 * number


def test_lanes_that_wait_share_the_time_whatever_their_reads_cost(loop: Loop) -> None:
    queue = fair_queue(loop)
    cheap = Client(loop, queue.lane(ALICE), cost=CHEAP)
    dear = Client(loop, queue.lane(BOB), cost=50 * CHEAP)
    for client in (cheap, dear):
        client.send()
    loop.run(2.0)
    assert cheap.passed == pytest.approx(50 * dear.passed, rel=0.1)
    assert cheap.passed * CHEAP == pytest.approx(1.0, rel=0.1)


def test_a_quiet_lane_waits_for_one_slice_of_each_busy_lane(loop: Loop) -> None:
    queue = fair_queue(loop)
    busy = [Client(loop, queue.lane(Account(uid, f"{uid}.service"))) for uid in range(2000, 2010)]
    for client in busy:
        client.send()
    loop.run(0.1)
    served: list[float] = []
    quiet = queue.lane(ALICE)

    def read() -> None:
        served.append(loop.now)
        quiet.note_read(1)

    for _ in range(10):
        asked = loop.now
        assert not quiet.pass_or_wait(read)
        while not served:
            loop.turn()
        assert served.pop() - asked <= len(busy) * (SLICE_SECONDS + CHEAP)
        loop.run(0.01)


def test_a_lane_alone_has_a_whole_slice_after_an_expensive_read(loop: Loop) -> None:
    """Its debt would only cost turns of the event loop: nobody else waits."""
    client = Client(loop, fair_queue(loop).lane(ALICE), cost=3 * SLICE_SECONDS)
    client.send()
    assert client.passed == 1
    client._cost = CHEAP
    loop.turn()
    assert client.passed >= SLICE_SECONDS / CHEAP


def test_new_connections_use_credit(loop: Loop) -> None:
    lane = fair_queue(loop).lane(ALICE)
    connects = 0
    while lane.pass_or_wait(lambda: None):
        lane.note_connection()
        lane.note_read(0)
        connects += 1
    assert 4 <= connects <= 6


def test_reads_are_smaller_while_another_lane_waits(loop: Loop) -> None:
    queue = fair_queue(loop)
    alice, bob = queue.lane(ALICE), queue.lane(BOB)
    sizes: list[int] = []

    def read() -> None:
        sizes.append(alice.read_bytes)
        alice.note_read(1)

    Client(loop, alice).send()
    Client(loop, bob).send()
    alice.pass_or_wait(read)
    loop.run(0.05)
    assert sizes == [SMALL_READ_BYTES]
    assert fair_queue(loop).lane(ALICE).read_bytes == READ_BYTES


def test_waiting_connections_resume_in_their_order(loop: Loop) -> None:
    lane = fair_queue(loop).lane(ALICE)
    order: list[str] = []

    def resumed_as(name: str) -> Callable[[], None]:
        def resume() -> None:
            order.append(name)
            loop.now += SLICE_SECONDS
            lane.note_read(1)

        return resume

    assert lane.pass_or_wait(lambda: None)
    loop.now += 3 * SLICE_SECONDS
    lane.note_read(1)
    for name in "abc":
        assert not lane.pass_or_wait(resumed_as(name))
    for number in range(1, 4):
        loop.turn()
        assert order == list("abc")[:number]


def test_a_connection_that_raises_does_not_stop_its_lane(loop: Loop) -> None:
    lane = fair_queue(loop, 10).lane(ALICE)
    lane.note_read(100)
    resumed: list[None] = []

    def fail() -> None:
        raise OSError("out of everything")

    assert not lane.pass_or_wait(fail)
    assert not lane.pass_or_wait(lambda: resumed.append(None))
    with pytest.raises(OSError, match="out of everything"):
        loop.run(60.0)
    loop.run(1.0)
    assert resumed == [None]
    assert lane.pass_or_wait(lambda: None)


def test_a_wait_for_tokens_is_reported_once_and_a_wait_for_a_turn_is_not(loop: Loop) -> None:
    waits: list[None] = []

    class Waits(NoSignals):
        def waited(self) -> None:
            waits.append(None)

    lane = fair_queue(loop, 10, Waits()).lane(ALICE)
    while lane.pass_or_wait(lambda: None):
        loop.now += CHEAP
        lane.note_read(0)
    assert not waits
    loop.run(0.1)
    lane.note_read(1000)
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


def test_the_bucket_of_a_connected_user_is_not_forgotten_for_new_users(loop: Loop) -> None:
    """Otherwise a user with many cgroups could get a full bucket as often as it likes."""
    queue = fair_queue(loop, 10.0)
    here = queue.lane(ALICE)
    for _ in range(int(20 * BURST_SECONDS)):
        here.note_read(1)
    for number in range(2 * KEYS):
        queue.lane(Account(number + 5000, f"{number}.service"))
    again = queue.lane(Account(ALICE.uid, "b.service"))
    loop.run(1.0)
    assert not again.pass_or_wait(lambda: None)
