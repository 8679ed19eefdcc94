"""Fair queueing: each user and cgroup gets its share of time and of requests per second.

No request is refused. The agent leaves a client's bytes in the socket until its turn, so that a
flood costs little but the flooder's own time. All connections of one user in one cgroup wait in one
queue, a lane. The scheduler is deficit round robin (Shreedhar and Varghese, 1996) over the time
that the event loop spends on a lane's reads and on the calls that begin in them:

* a lane is served at once while no lane waits and its credit lasts. The credit is at most one
  slice; half of each millisecond comes back;
* lanes that wait take turns, one slice each, with a round of the event loop between two turns. A
  lane that took more than its slice pays in its next turns;
* in the long run a lane waits for tokens: one bucket for the lane, one for its user, one for its
  cgroup.
"""

from __future__ import annotations

from collections import deque
from time import perf_counter
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

# The time of one lane in one turn: a few cheap calls. Each waiting lane delays others by this much.
SLICE_SECONDS = 0.0005
# The part of the time that a lane may use without a turn, while no lane waits.
UNQUEUED_SHARE = 0.5
# The cost of a connection before its lane is known.
ACCEPT_SECONDS = 0.0001
# One read holds a first request or a dozen of the smallest later ones, and other lanes wait for all
# of them. While lanes wait, one read holds three or four.
READ_BYTES = 512
SMALL_READ_BYTES = 128
# The cost of a read without a request, in requests. The rest of a DATA frame, some 16 KiB, is one
# read as well: it takes about as much time as a small one.
READ_COST = 0.05
# The tokens of so many seconds can be used at once: many processes start together.
BURST_SECONDS = 3.0
# Shorter waits for tokens cost more in timers than they save.
MIN_WAIT_SECONDS = 0.001


class FairQueue:
    """Passes `rate` requests a second for each user and each cgroup, and half as many for a lane.

    It reports each time a lane begins to wait for tokens. `clock` measures the time that a lane
    uses.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        rate: float,
        signals: Signals,
        slice_seconds: float = SLICE_SECONDS,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        self.loop = loop
        self.signals = signals
        self.slice_seconds = slice_seconds
        self.clock = clock
        self.ring: deque[Lane] = deque()
        """The lanes that wait for their turn."""
        self._shares = _Shares(rate)
        self._lanes: WeakValueDictionary[Account, Lane] = WeakValueDictionary()

    def lane(self, account: Account) -> Lane:
        """Return the lane of this account. It lives as long as a connection holds it."""
        lane = self._lanes.get(account)
        if lane is None:
            lane = self._lanes[account] = Lane(self, self._shares.of(account))
        return lane

    def enter(self, lane: Lane) -> None:
        """Let a lane wait for its turn."""
        self.ring.append(lane)
        if len(self.ring) == 1:
            self.loop.call_soon(self._take_turn)

    def _take_turn(self) -> None:
        lane = self._next()
        try:
            lane.serve()
        finally:  # an error of one connection must not stop the others
            self.ring.popleft()
            if lane.waits_for_turn():
                self.ring.append(lane)
            if self.ring:
                self.loop.call_soon(self._take_turn)

    def _next(self) -> Lane:
        """Move the next lane whose debt is paid to the front, and return it."""
        ring = self.ring
        if len(ring) == 1:
            ring[0].forgive()
        while not ring[0].earn():
            ring.rotate(-1)
        return ring[0]


class Lane:
    """The queue of one user in one cgroup, with its credit and the buckets that it pays from."""

    __slots__ = (
        "__weakref__",
        "_began",
        "_credit",
        "_earned_at",
        "_is_scheduled",
        "_queue",
        "_shares",
        "_waiting",
    )

    def __init__(self, queue: FairQueue, shares: tuple[Bucket, ...]) -> None:
        self._queue = queue
        self._shares = shares
        self._waiting: deque[Callable[[], None]] = deque()
        self._is_scheduled = False  # in the ring, or by a timer
        self._credit = queue.slice_seconds
        self._earned_at = self._began = queue.clock()

    def pass_or_wait(self, resume: Callable[[], None]) -> bool:
        """Return whether a connection may be read now; if not, call `resume` when it may.

        After the read, and the calls that begin in it, the connection reports it (`note_read`).
        """
        queue = self._queue
        if not self._waiting and not queue.ring:
            self._earn_by_time(queue.clock())
            if self._credit > 0 and not self._seconds_to_wait():
                return True
        self._waiting.append(resume)
        if not self._is_scheduled:
            self._is_scheduled = True
            if self.waits_for_turn():
                queue.enter(self)
        return False

    @property
    def read_bytes(self) -> int:
        """The most bytes to read at once: fewer while other lanes wait."""
        return SMALL_READ_BYTES if len(self._queue.ring) > 1 else READ_BYTES

    def note_connection(self) -> None:
        """Charge a new connection."""
        self._credit -= ACCEPT_SECONDS
        self._charge(1.0)

    def note_read(self, requests: int) -> None:
        """Charge a read in which `requests` calls began, and the time since it passed."""
        now = self._queue.clock()
        self._credit -= now - self._began
        self._began = now
        self._charge(READ_COST + requests)

    # --- for the queue ----------------------------------------------------------------------------

    def earn(self) -> bool:
        """Take the credit of one turn, at most one slice; return whether the debt is paid."""
        most = self._queue.slice_seconds
        self._credit = min(most, self._credit + most)
        return self._credit > 0

    def forgive(self) -> None:
        """Drop the debt: no other lane waits."""
        self._credit = max(self._credit, 0.0)

    def serve(self) -> None:
        """Resume connections until its credit or its tokens are used up."""
        queue = self._queue
        while self._waiting and self._credit > 0 and not self._seconds_to_wait():
            self._began = queue.clock()
            self._waiting.popleft()()
        self._earned_at = queue.clock()

    def waits_for_turn(self) -> bool:
        """Return whether it waits for its next turn. If it waits for tokens, a timer brings it."""
        if self._waiting:
            wait = self._seconds_to_wait()
            if not wait:
                return True
            self._queue.signals.waited()
            self._queue.loop.call_later(max(wait, MIN_WAIT_SECONDS), self._queue.enter, self)
        else:
            self._is_scheduled = False
        return False

    def _earn_by_time(self, now: float) -> None:
        earned = UNQUEUED_SHARE * (now - self._earned_at)
        self._credit = min(self._queue.slice_seconds, self._credit + earned)
        self._began = self._earned_at = now

    def _charge(self, cost: float) -> None:
        """Take tokens from all buckets, into debt if necessary."""
        now = self._queue.loop.time()
        for bucket in self._shares:
            bucket.charge(cost, now)

    def _seconds_to_wait(self) -> float:
        """Return the seconds until every bucket has a token."""
        now = self._queue.loop.time()
        return max([bucket.seconds_until(1, now) for bucket in self._shares])


class _Shares:
    """The buckets of users and cgroups. A bucket that a lane holds is never forgotten."""

    def __init__(self, rate: float) -> None:
        self._rates = {Scope.USER_IN_CGROUP: rate / 2, Scope.USER: rate, Scope.CGROUP: rate}
        self._recent: dict[Scope, LRUCache[Key, Bucket]] = {
            scope: LRUCache(KEYS) for scope in self._rates
        }
        self._held: WeakValueDictionary[Key, Bucket] = WeakValueDictionary()

    def of(self, account: Account) -> tuple[Bucket, ...]:
        """Return the buckets that an account pays from."""
        return tuple(self._bucket(key) for key in account.keys)

    def _bucket(self, key: Key) -> Bucket:
        recent, rate = self._recent[key[0]], self._rates[key[0]]
        bucket = self._held.get(key) or recent.get(key)
        if bucket is None:
            bucket = recent[key] = Bucket(burst=max(1.0, BURST_SECONDS * rate), rate=rate)
        self._held[key] = bucket
        return bucket
