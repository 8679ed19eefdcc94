"""Users whose clients ask much are heard in turn, and in the long run no faster than their share.

Nobody is refused: what a client has sent stays in its socket until it is its turn, so that a flood
costs little but the flooder's own time. Connections of one user in one cgroup wait in one queue, a
lane. Three things make it wait:

* what it passed on before, and the server has not begun to answer: whoever else calls then waits
  behind a few calls of the lane, however many there are;
* what it passed on within this millisecond, be it calls or frames that cost no less;
* its share in the long run: a bucket of tokens for the lane, for its user, and for its cgroup.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from cachetools import LRUCache

from agent.kernel.account import Scope
from agent.rate_limit import KEYS, Bucket

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from agent.kernel.account import Account, Key
    from agent.signals import Signals

# What passes at once. A new connection weighs as much as several reads.
QUANTUM_SECONDS = 0.001
READS_PER_QUANTUM = 12
CONNECT_READS = 4
# A first request, or a dozen of the smallest later ones, for all of which others have to wait; and
# three or four of them, where many want to be heard.
BITE_BYTES = 512
SMALL_BITE_BYTES = 128
CROWDED_SECONDS = 1.0
# A read that brings no request costs this much of one.
READ_COST = 0.05
# So few bytes hold what a client answers to the server's first frames, and no call: the smallest
# has 30. To let them wait takes longer than to read them. So often, until all calls have begun.
TINY_BITE_BYTES = 28
TINY_READS = 3
# The server begins with what it was passed on within a millisecond or two, but never with a request
# that is not complete.
PATIENCE_SECONDS = 0.05
# As much as this many seconds bring may be had at once: many processes start together.
BURST_SECONDS = 3.0


def _unknown() -> int:
    """How many bytes there are is not known: they may be many."""
    return TINY_BITE_BYTES + 1


class FairQueue:
    """Lets `rate` requests a second pass of each user and cgroup, and half as many of a lane.

    It reports whenever a lane begins to wait for its share.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, rate: float, signals: Signals) -> None:
        self._loop = loop
        self._shares = _Shares(rate)
        self._signals = signals
        self._lanes: WeakValueDictionary[Account, Lane] = WeakValueDictionary()

    def lane(self, account: Account) -> Lane:
        """Where the connections of this user in this cgroup wait. Each of them holds it."""
        lane = self._lanes.get(account)
        if lane is None:
            lane = self._lanes[account] = Lane(self._loop, self._shares.of(account), self._signals)
        return lane


class Lane:
    """The queue of one user in one cgroup, and the buckets that hold its shares."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, shares: tuple[Bucket, ...], signals: Signals
    ) -> None:
        self._loop = loop
        self._shares = shares
        self._signals = signals
        self._waiting: deque[Callable[[], None]] = deque()
        self._armed = False
        self._crowded_until = 0.0
        self._quantum = 0.0
        self._reads = 0
        self._unbegun = 0
        self._unbegun_since = 0.0
        self._tiny = 0
        self._is_tiny = False

    def pass_or_wait(
        self, resume: Callable[[], None], unread: Callable[[], int] = _unknown
    ) -> bool:
        """Whether it may go on now; if not, `resume` is called when it is its turn.

        Whoever goes on says at once what it has passed on. `unread` tells how many bytes it has to
        read.
        """
        now = self._loop.time()
        if not self._waiting and self._may_pass(now, unread):
            return True
        self._crowded_until = now + CROWDED_SECONDS
        self._waiting.append(resume)
        if not self._armed and self._arm() > QUANTUM_SECONDS:
            self._signals.waited()
        return False

    @property
    def bite(self) -> int:
        """How many bytes to read at once: fewer while there are others who wait."""
        if self._is_tiny:
            return TINY_BITE_BYTES
        crowded = self._loop.time() < self._crowded_until
        return SMALL_BITE_BYTES if crowded else BITE_BYTES

    def connected(self) -> None:
        """A connection has passed."""
        self._reads += CONNECT_READS
        self._charge(1.0, self._loop.time())

    def passed(self, requests: int, complete: int) -> None:
        """What was read once has passed, with so many requests in it, and the ends of so many.

        The server begins with one that is complete; for another its client must be read on.
        """
        now = self._loop.time()
        self._reads += 1
        self._charge(READ_COST + requests, now)
        if complete:
            self._unbegun += complete
            self._unbegun_since = now

    def begun(self) -> None:
        """The server has begun with a request."""
        self._unbegun -= self._unbegun > 0
        if not self._unbegun:
            self._tiny = 0
            if self._waiting:
                self._loop.call_soon(self._go_on)

    def _may_pass(self, now: float, unread: Callable[[], int] = _unknown) -> bool:
        if now - self._quantum >= QUANTUM_SECONDS:
            self._quantum, self._reads = now, 0
        if self._reads >= READS_PER_QUANTUM:
            return False
        if not self._unbegun or now - self._unbegun_since >= PATIENCE_SECONDS:
            self._unbegun = self._tiny = 0
        elif self._tiny >= TINY_READS or unread() > TINY_BITE_BYTES:
            return False
        self._is_tiny = self._unbegun > 0
        self._tiny += self._is_tiny
        return not self._seconds_to_wait(now)

    def _arm(self) -> float:
        wait = max(self._seconds_to_wait(self._loop.time()), QUANTUM_SECONDS)
        self._armed = True
        self._loop.call_later(wait, self._on_time)
        return wait

    def _on_time(self) -> None:
        try:
            self._go_on()
        finally:  # a lane must not stand still for ever because of one who waited in it
            self._armed = False
            if self._waiting:
                self._arm()

    def _go_on(self) -> None:
        while self._waiting and self._may_pass(self._loop.time()):
            self._waiting.popleft()()

    def _charge(self, cost: float, now: float) -> None:
        """Put something down to them, whether they can pay or not."""
        for bucket in self._shares:
            bucket.charge(cost, now)

    def _seconds_to_wait(self, now: float) -> float:
        """Until all of them can pay."""
        return max([bucket.seconds_until(1, now) for bucket in self._shares])


class _Shares:
    """What users and cgroups have left of their rate. Who is here now is never forgotten."""

    def __init__(self, rate: float) -> None:
        self._rates = {Scope.USER_IN_CGROUP: rate / 2, Scope.USER: rate, Scope.CGROUP: rate}
        self._recent: dict[Scope, LRUCache[Key, Bucket]] = {
            scope: LRUCache(KEYS) for scope in self._rates
        }
        self._held: WeakValueDictionary[Key, Bucket] = WeakValueDictionary()

    def of(self, account: Account) -> tuple[Bucket, ...]:
        """The buckets of all against whom it counts."""
        return tuple(self._bucket(key) for key in account.keys)

    def _bucket(self, key: Key) -> Bucket:
        recent, rate = self._recent[key[0]], self._rates[key[0]]
        bucket = self._held.get(key) or recent.get(key)
        if bucket is None:
            bucket = recent[key] = Bucket(burst=max(1.0, BURST_SECONDS * rate), rate=rate)
        self._held[key] = bucket
        return bucket
