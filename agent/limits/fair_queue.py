"""Fair queueing: each user and cgroup gets its share of requests per second; the rest waits.

No request is refused. The agent leaves a client's bytes in the socket until its turn, so that a
flood costs little but the flooder's own time. All connections of one user in one cgroup wait in one
queue, a lane. A lane waits

* until the server has begun with the calls that it passed on before: other lanes then wait behind a
  few calls of this lane, however many it has;
* for the next millisecond, once it has used its reads of this one;
* for tokens, in the long run: one bucket for the lane, one for its user, one for its cgroup.
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

# Reads of one lane in one quantum of time. A new connection costs as much as several reads.
QUANTUM_SECONDS = 0.001
READS_PER_QUANTUM = 12
CONNECT_READS = 4
# One read holds a first request or a dozen of the smallest later ones, and other lanes wait for all
# of them. While connections wait in the lane, one read holds three or four.
READ_BYTES = 512
SMALL_READ_BYTES = 128
CROWDED_SECONDS = 1.0
# The cost of a read without a request, in requests.
READ_COST = 0.05
# A client answers the server's first frames in at most this many bytes; the smallest call has 30.
# Such reads pass at once, since waiting would cost more, but only a few until all calls have begun.
TINY_READ_BYTES = 28
TINY_READS = 3
# The server begins with a complete request within a millisecond or two, and never with half of one.
PATIENCE_SECONDS = 0.05
# The tokens of so many seconds can be used at once: many processes start together.
BURST_SECONDS = 3.0


def _unknown() -> int:
    """Count unread bytes that are not known as too many for a tiny read."""
    return TINY_READ_BYTES + 1


class FairQueue:
    """Passes `rate` requests a second for each user and each cgroup, and half as many for a lane.

    It reports each time a lane begins to wait for tokens. A request with which the server does not
    begin holds its lane for `patience_seconds`.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        rate: float,
        signals: Signals,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        self._loop = loop
        self._shares = _Shares(rate)
        self._signals = signals
        self._patience_seconds = patience_seconds
        self._lanes: WeakValueDictionary[Account, Lane] = WeakValueDictionary()

    def lane(self, account: Account) -> Lane:
        """Return the lane of this account. It lives as long as a connection holds it."""
        lane = self._lanes.get(account)
        if lane is None:
            lane = self._lanes[account] = Lane(
                self._loop, self._shares.of(account), self._signals, self._patience_seconds
            )
        return lane


class Lane:
    """The queue of one user in one cgroup, with the buckets that it pays from."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        shares: tuple[Bucket, ...],
        signals: Signals,
        patience_seconds: float,
    ) -> None:
        self._loop = loop
        self._shares = shares
        self._signals = signals
        self._patience_seconds = patience_seconds
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
        """Return whether a connection may be read now; if not, call `resume` when it may.

        After the read the connection reports it at once (`note_read`). `unread` returns the number
        of bytes that wait in its socket.
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
    def read_bytes(self) -> int:
        """The most bytes to read at once: fewer while other connections of the lane wait."""
        if self._is_tiny:
            return TINY_READ_BYTES
        crowded = self._loop.time() < self._crowded_until
        return SMALL_READ_BYTES if crowded else READ_BYTES

    def note_connection(self) -> None:
        """Charge a new connection."""
        self._reads += CONNECT_READS
        self._charge(1.0, self._loop.time())

    def note_read(self, requests: int, complete: int) -> None:
        """Charge a read in which `requests` calls began and `complete` requests became complete.

        The server begins with a complete request; of an incomplete one the client must send more.
        """
        now = self._loop.time()
        self._reads += 1
        self._charge(READ_COST + requests, now)
        if complete:
            self._unbegun += complete
            self._unbegun_since = now

    def note_begun(self) -> None:
        """Note that the server has begun with a request."""
        self._unbegun -= self._unbegun > 0
        if not self._unbegun:
            self._tiny = 0
            if self._waiting:
                self._loop.call_soon(self._resume_waiting)

    def _may_pass(self, now: float, unread: Callable[[], int] = _unknown) -> bool:
        if now - self._quantum >= QUANTUM_SECONDS:
            self._quantum, self._reads = now, 0
        if self._reads >= READS_PER_QUANTUM:
            return False
        if not self._unbegun or now - self._unbegun_since >= self._patience_seconds:
            self._unbegun = self._tiny = 0
        elif self._tiny >= TINY_READS or unread() > TINY_READ_BYTES:
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
            self._resume_waiting()
        finally:  # an error of one connection must not stop the lane
            self._armed = False
            if self._waiting:
                self._arm()

    def _resume_waiting(self) -> None:
        while self._waiting and self._may_pass(self._loop.time()):
            self._waiting.popleft()()

    def _charge(self, cost: float, now: float) -> None:
        """Take tokens from all buckets, into debt if necessary."""
        for bucket in self._shares:
            bucket.charge(cost, now)

    def _seconds_to_wait(self, now: float) -> float:
        """Return the seconds until every bucket has a token."""
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
