"""Lanes on a clock of the test's own."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count
from typing import Any, cast

import pytest

from agent.kernel.account import Account
from agent.limits.fair_queue import (
    BITE_BYTES,
    BURST_SECONDS,
    CONNECT_READS,
    PATIENCE_SECONDS,
    READS_PER_QUANTUM,
    SMALL_BITE_BYTES,
    TINY_BITE_BYTES,
    TINY_READS,
    FairQueue,
    Lane,
)
from agent.rate_limit import KEYS
from agent.signals import UNHEARD, Signals, Unheard

ALICE = Account(1001, "a.service")


class Loop:
    """An event loop as far as lanes need one, whose time stands still."""

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
    """One that always has more to send, `requests` in each read; the server begins at once."""

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
        self._lane.passed(self._requests, self._requests)
        for _ in range(self._requests if self._begins else 0):
            self._lane.begun()


@pytest.fixture
def loop() -> Loop:
    return Loop()


def fair_queue(loop: Loop, rate: float, signals: Signals = UNHEARD) -> FairQueue:
    return FairQueue(cast("Any", loop), rate, signals)


def test_in_the_long_run_a_lane_has_half_of_its_users_rate(loop: Loop) -> None:
    client = Client(fair_queue(loop, 100).lane(ALICE), 1)
    client.send()
    loop.run(10 * BURST_SECONDS)
    burst, rest = 50 * BURST_SECONDS, 50 * 10 * BURST_SECONDS
    assert client.passed == pytest.approx((burst + rest) / 1.05, rel=0.01)


def test_a_user_has_its_rate_in_all_its_cgroups_together(loop: Loop) -> None:
    all_of_it = fair_queue(loop, 100)
    clients = [Client(all_of_it.lane(Account(1001, f"{n}.service")), 1) for n in range(8)]
    for client in clients:
        client.send()
    loop.run(10 * BURST_SECONDS)
    assert sum(c.passed for c in clients) == pytest.approx(
        100 * 11 * BURST_SECONDS / 1.05, rel=0.02
    )
    assert min(c.passed for c in clients) > 0


def test_users_of_one_cgroup_share_its_rate_and_others_do_not_feel_it(loop: Loop) -> None:
    all_of_it = fair_queue(loop, 100)
    crowd = [Client(all_of_it.lane(Account(uid, "rootless")), 1) for uid in range(2000, 2100)]
    for client in crowd:
        client.send()
    loop.run(2 * BURST_SECONDS)
    assert sum(c.passed for c in crowd) < 100 * 3 * BURST_SECONDS + len(crowd)
    assert all_of_it.lane(ALICE).pass_or_wait(lambda: None)


def test_frames_without_requests_cost_too(loop: Loop) -> None:
    client = Client(fair_queue(loop, 100).lane(ALICE), 0)
    client.send()
    loop.run(10 * BURST_SECONDS)
    assert client.passed < 50 * 11 * BURST_SECONDS / 0.05 * 1.01


def test_no_more_passes_before_the_server_has_begun_with_what_did(loop: Loop) -> None:
    lane = fair_queue(loop, 1e6).lane(ALICE)
    resumed: list[int] = []
    assert lane.pass_or_wait(lambda: None)
    lane.passed(3, 3)
    assert not lane.pass_or_wait(lambda: resumed.append(1))
    lane.begun()
    lane.begun()
    loop.run(0.002)
    assert not resumed
    lane.begun()
    loop.run(0.0)
    assert resumed == [1]


def test_a_request_that_is_not_complete_holds_up_nobody_not_even_its_own_rest(loop: Loop) -> None:
    lane = fair_queue(loop, 1e6).lane(ALICE)
    assert lane.pass_or_wait(lambda: None)
    lane.passed(1, 0)
    assert lane.pass_or_wait(lambda: None)
    lane.passed(0, 1)
    assert not lane.pass_or_wait(lambda: None)


def test_what_is_too_little_for_a_request_passes_a_few_times(loop: Loop) -> None:
    """A client answers the server's first frames while its first request is on its way."""
    lane = fair_queue(loop, 1e6).lane(ALICE)
    assert lane.pass_or_wait(lambda: None)
    lane.passed(1, 1)
    for _ in range(2):
        for _ in range(TINY_READS):
            assert lane.pass_or_wait(lambda: None, lambda: TINY_BITE_BYTES)
            lane.passed(0, 0)
        lane.begun()
        lane.passed(1, 1)
    for _ in range(TINY_READS):
        assert lane.pass_or_wait(lambda: None, lambda: 0)
    assert not lane.pass_or_wait(lambda: None, lambda: TINY_BITE_BYTES)


def test_calls_in_tiny_pieces_do_not_pile_up(loop: Loop) -> None:
    """Each of them is begun with, but fewer than could come."""
    lane = fair_queue(loop, 1e6).lane(ALICE)
    unbegun = most = 0
    for number in range(1000):
        if lane.pass_or_wait(lambda: None, lambda: TINY_BITE_BYTES):
            lane.passed(1, 1)
            unbegun += 1
        if number % 3 == 2 and unbegun:
            lane.begun()
            unbegun -= 1
        most = max(most, unbegun)
        loop.now += 0.0002
    assert most <= 1 + TINY_READS


def test_what_is_too_little_is_not_read_with_what_comes_meanwhile(loop: Loop) -> None:
    lane = fair_queue(loop, 1e6).lane(ALICE)
    assert lane.pass_or_wait(lambda: None, lambda: 9)
    assert lane.bite == BITE_BYTES
    lane.passed(1, 1)
    assert lane.pass_or_wait(lambda: None, lambda: 9)
    assert lane.bite == TINY_BITE_BYTES
    lane.begun()
    assert lane.pass_or_wait(lambda: None, lambda: 9)
    assert lane.bite == BITE_BYTES


def test_what_may_hold_a_request_waits_and_so_does_all_behind_it(loop: Loop) -> None:
    lane = fair_queue(loop, 1e6).lane(ALICE)
    assert lane.pass_or_wait(lambda: None)
    lane.passed(1, 1)
    assert not lane.pass_or_wait(lambda: None, lambda: TINY_BITE_BYTES + 1)
    assert not lane.pass_or_wait(lambda: None, lambda: TINY_BITE_BYTES)


def test_where_many_wait_less_is_read_at_once(loop: Loop) -> None:
    lane = fair_queue(loop, 1e6).lane(ALICE)
    assert lane.bite == BITE_BYTES
    lane.pass_or_wait(lambda: None)
    lane.passed(1, 1)
    lane.pass_or_wait(lambda: None)
    assert lane.bite == SMALL_BITE_BYTES
    loop.run(1.1)
    assert lane.bite == BITE_BYTES


def test_a_request_that_never_begins_does_not_hold_up_its_lane_for_long(loop: Loop) -> None:
    client = Client(fair_queue(loop, 1e6).lane(ALICE), 1, begins=False)
    client.send()
    loop.run(1.0)
    assert client.passed == pytest.approx(1.0 / PATIENCE_SECONDS, abs=2)


def test_a_millisecond_has_room_for_a_few_reads_and_for_fewer_connects(loop: Loop) -> None:
    lane = fair_queue(loop, 1e6).lane(ALICE)
    client = Client(lane, 0)
    client.send()
    assert client.passed == READS_PER_QUANTUM
    loop.run(0.0101)
    assert client.passed <= 12 * READS_PER_QUANTUM
    other = fair_queue(loop, 1e6).lane(ALICE)
    connects = 0
    while other.pass_or_wait(lambda: None):
        other.connected()
        connects += 1
    assert connects == READS_PER_QUANTUM / CONNECT_READS


def test_those_who_wait_go_on_in_their_order(loop: Loop) -> None:
    lane = fair_queue(loop, 1e6).lane(ALICE)
    order: list[str] = []

    def goes_on(name: str) -> Callable[[], None]:
        def resume() -> None:
            order.append(name)
            lane.passed(1, 1)

        return resume

    assert lane.pass_or_wait(lambda: None)
    lane.passed(1, 1)
    for name in "abc":
        assert not lane.pass_or_wait(goes_on(name))
    for _ in range(3):
        lane.begun()
        loop.run(0.0)
    assert order == ["a", "b", "c"]


def test_one_whose_turn_ends_in_an_error_does_not_hold_up_the_others(loop: Loop) -> None:
    lane = fair_queue(loop, 10).lane(ALICE)
    lane.passed(1, 1)
    gone_on: list[None] = []

    def fail() -> None:
        raise OSError("out of everything")

    assert not lane.pass_or_wait(fail)
    assert not lane.pass_or_wait(lambda: gone_on.append(None))
    with pytest.raises(OSError, match="out of everything"):
        loop.run(1.0)
    loop.run(1.0)
    assert gone_on == [None]


def test_who_has_to_wait_for_its_share_is_noted_once_and_who_waits_its_turn_is_not(
    loop: Loop,
) -> None:
    waits: list[None] = []

    class Heard(Unheard):
        def waited(self) -> None:
            waits.append(None)

    lane = fair_queue(loop, 10, Heard()).lane(ALICE)
    while lane.pass_or_wait(lambda: None):
        lane.passed(0, 0)
    assert not waits
    loop.run(0.1)
    lane.passed(1000, 1000)
    lane.begun()
    loop.run(0.1)
    for _ in range(3):
        assert not lane.pass_or_wait(lambda: None)
    assert len(waits) == 1


def test_a_lane_is_one_for_all_connections_and_gone_with_the_last(loop: Loop) -> None:
    all_of_it = fair_queue(loop, 10)
    lane = all_of_it.lane(ALICE)
    assert all_of_it.lane(Account(1001, "a.service")) is lane
    assert all_of_it.lane(Account(1001, "b.service")) is not lane
    del lane
    assert not all_of_it._lanes


def test_whoever_is_here_is_not_forgotten_for_others_that_come_by() -> None:
    """Else a user with many cgroups could have its share anew as often as it likes."""
    loop = Loop()
    fair_queue = FairQueue(cast("Any", loop), 10.0, UNHEARD)
    here = fair_queue.lane(ALICE)
    for _ in range(int(20 * BURST_SECONDS)):
        here.passed(1, 1)
    for number in range(2 * KEYS):
        fair_queue.lane(Account(number + 5000, f"{number}.service"))
    again = fair_queue.lane(Account(ALICE.uid, "b.service"))
    loop.run(1.0)
    assert not again.pass_or_wait(lambda: None)
