"""The open streams, and the identities that each caller was served last.

A stream is woken when something that concerns it has changed. It does not learn what: it attests
and matches its caller again.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from agent.errors import StoppingError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager
    from datetime import datetime
    from typing import NoReturn

    from agent.authority.authority_set import AuthorityKind
    from agent.clock import Clock
    from agent.entries.identity import Identity
    from agent.kernel.caller import Caller
    from agent.workloads.entitlement import Entitlement

# How long `run` sleeps, at most and at least. In between it wakes at the end of an entry; streams
# come and go meanwhile, and the clock may be set.
TICK_SECONDS = 1.0
SHORTEST_TICK_SECONDS = 0.05


class Wakeup:
    """An `asyncio.Event` for one waiter at a time, whose wait may have a deadline.

    Each open stream has one and waits nearly always: an Event under `asyncio.timeout` takes three
    times as long, and ends each wait with an exception.
    """

    __slots__ = ("_is_set", "_waiter")

    def __init__(self) -> None:
        self._is_set = False
        self._waiter: asyncio.Future[None] | None = None

    def is_set(self) -> bool:
        """Return whether it was set since it was last cleared."""
        return self._is_set

    def set(self) -> None:
        """End the wait under way, or the next one."""
        self._is_set = True
        self._release()

    def clear(self) -> None:
        """Unset: the next wait is for changes from here on."""
        self._is_set = False

    async def wait_until(self, moment: float) -> bool:
        """Return when it is set, or at this moment of the loop's time: whether it is set."""
        if not self._is_set:
            loop = asyncio.get_running_loop()
            self._waiter = loop.create_future()
            timer = loop.call_at(moment, self._release)
            try:
                await self._waiter
            finally:
                timer.cancel()
                self._waiter = None
        return self._is_set

    def _release(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


@dataclass(slots=True, kw_only=True, eq=False)
class OpenStream:
    """A stream of SVIDs or bundles.

    `Streams.show` sets `entitlement`; it is None until the first attestation has ended.
    """

    caller: Caller
    method: str
    kind: AuthorityKind
    since: datetime
    entitlement: Entitlement | None = None
    changed: Wakeup = field(default_factory=Wakeup)


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """The identities of which a method returned SVIDs to a caller."""

    at: datetime
    method: str
    identities: tuple[Identity, ...]


class Streams:
    """All open streams, and for each caller and method the identities served last."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._open: set[OpenStream] = set()
        # The open streams with an entry that ends, and the end.
        self._ending: dict[OpenStream, datetime] = {}
        self._closed = False
        self._served: WeakKeyDictionary[Caller, dict[str, Served]] = WeakKeyDictionary()

    @property
    def open(self) -> tuple[OpenStream, ...]:
        """The open streams, the oldest first."""
        return tuple(sorted(self._open, key=lambda stream: stream.since))

    def open_stream(
        self, caller: Caller, method: str, kind: AuthorityKind
    ) -> AbstractContextManager[OpenStream]:
        """Add a stream of this method, which shows authorities of this kind, for a block."""
        now = self._clock.now()
        stream = OpenStream(caller=caller, method=method, kind=kind, since=now)
        return _Registration(stream, self._open, self._ending)

    def show(self, stream: OpenStream, entitlement: Entitlement) -> None:
        """Record the entitlement by which the stream serves its caller from now on."""
        stream.entitlement = entitlement
        if entitlement.ends_at is not None:
            self._ending[stream] = entitlement.ends_at
        else:
            self._ending.pop(stream, None)

    def close(self) -> None:
        """End all streams, and refuse further ones: the agent stops."""
        self._closed = True
        self.wake(lambda _: True)

    def check_open(self) -> None:
        """Let a stream go on.

        Raises:
            StoppingError: the agent stops.
        """
        if self._closed:
            raise StoppingError("the agent stops, perhaps to start again; try again")

    def note_served(self, caller: Caller, method: str, identities: Sequence[Identity]) -> None:
        """Record that a method serves a caller these identities now."""
        self._served.setdefault(caller, {})[method] = Served(
            at=self._clock.now(), method=method, identities=tuple(identities)
        )

    def served(self, caller: Caller) -> tuple[Served, ...]:
        """Return the identities served last to a caller, by each method that it called."""
        return tuple(self._served.get(caller, {}).values())

    def callers(self) -> tuple[Caller, ...]:
        """Return the live callers that have an open stream or were served an identity."""
        known = dict.fromkeys((*(s.caller for s in self.open), *self._served))
        return tuple(caller for caller in known if caller.process.is_alive())

    def latest(self) -> tuple[OpenStream, ...]:
        """Return, of each caller, the stream that it opened last."""
        return tuple({stream.caller: stream for stream in self.open}.values())

    def wake(self, concerns: Callable[[OpenStream], bool]) -> int:
        """Wake the streams that a change concerns, and return their number."""
        concerned = [stream for stream in self._open if concerns(stream)]
        for stream in concerned:
            stream.changed.set()
        return len(concerned)

    async def run(self) -> NoReturn:
        """Wake streams at the end of their entries, until cancelled."""
        while True:
            await self._clock.sleep(self.wake_ended())

    def wake_ended(self) -> float:
        """Wake the streams with an entry that has ended.

        Returns:
            Seconds until the next call is due.
        """
        now, left = self._clock.now(), TICK_SECONDS
        for stream, end in self._ending.items():
            if end <= now:
                stream.changed.set()
            else:
                left = min(left, (end - now).total_seconds())
        return max(left, SHORTEST_TICK_SECONDS)


class _Registration:
    """Keeps a stream in the two collections for a block."""

    __slots__ = ("_ending", "_open", "_stream")

    def __init__(
        self, stream: OpenStream, open_: set[OpenStream], ending: dict[OpenStream, datetime]
    ) -> None:
        self._stream = stream
        self._open = open_
        self._ending = ending

    def __enter__(self) -> OpenStream:
        self._open.add(self._stream)
        return self._stream

    def __exit__(self, *_error: object) -> None:
        self._open.discard(self._stream)
        self._ending.pop(self._stream, None)
