"""Who is served: the open streams, and what each caller was given last.

A stream is told that something which concerns it has changed, never what: it then finds out anew
what its caller may have.
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

    from agent.authority.authority_set import AuthorityKind
    from agent.clock import Clock
    from agent.entries.identity import Identity
    from agent.kernel.caller import Caller
    from agent.workloads.entitlement import Entitlement

# How often it is looked whether an entry has come to its end, at least and at most: in between just
# then. Streams come and go meanwhile, and the clock may be set.
TICK_SECONDS = 1.0
SHORTEST_TICK_SECONDS = 0.05


class Wakeup:
    """As `asyncio.Event`, for one who waits at a time, and who may wait until a moment.

    Each open stream has one and waits nearly always: an Event under `asyncio.timeout` takes three
    times as long, and ends each wait with an exception.
    """

    __slots__ = ("_is_set", "_waiter")

    def __init__(self) -> None:
        self._is_set = False
        self._waiter: asyncio.Future[None] | None = None

    def is_set(self) -> bool:
        """Whether it was set since it was last cleared."""
        return self._is_set

    def set(self) -> None:
        """Wake up who waits, now or the next time."""
        self._is_set = True
        self._release()

    def clear(self) -> None:
        """Wait for what changes from here on."""
        self._is_set = False

    async def wait_until(self, moment: float) -> bool:
        """Return when it is set, or at this moment of the loop's time; whether it is set."""
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

    `entitlement`, which is set by `Roster.show`, is None while its caller is being attested.
    """

    caller: Caller
    method: str
    kind: AuthorityKind
    since: datetime
    entitlement: Entitlement | None = None
    changed: Wakeup = field(default_factory=Wakeup)


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What a caller was given."""

    at: datetime
    method: str
    identities: tuple[Identity, ...]


class Streams:
    """All open streams, and by caller what was served last by each method."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._streams: set[OpenStream] = set()
        # Those of them that show an entry with an end: they are looked at each second.
        self._ending: dict[OpenStream, datetime] = {}
        self._closed = False
        self._served: WeakKeyDictionary[Caller, dict[str, Served]] = WeakKeyDictionary()

    @property
    def streams(self) -> tuple[OpenStream, ...]:
        """Those that are open now, the oldest first."""
        return tuple(sorted(self._streams, key=lambda stream: stream.since))

    def open(
        self, caller: Caller, method: str, kind: AuthorityKind
    ) -> AbstractContextManager[OpenStream]:
        """Be a stream of this method, which shows authorities of this kind, for a block."""
        now = self._clock.now()
        stream = OpenStream(caller=caller, method=method, kind=kind, since=now)
        return _Listed(stream, self._streams, self._ending)

    def show(self, stream: OpenStream, entitlement: Entitlement) -> None:
        """The stream shows from now on what its caller may have by this."""
        stream.entitlement = entitlement
        if entitlement.ends_at is not None:
            self._ending[stream] = entitlement.ends_at
        else:
            self._ending.pop(stream, None)

    def close(self) -> None:
        """The agent ends: tell all streams, and those to come."""
        self._closed = True
        self.wake(lambda _: True)

    def check_open(self) -> None:
        """Whether streams may go on.

        Raises:
            StoppingError: the agent ends.
        """
        if self._closed:
            raise StoppingError("the agent stops, perhaps to start again; try again")

    def note_served(self, caller: Caller, method: str, identities: Sequence[Identity]) -> None:
        """Remember what a caller is given now."""
        self._served.setdefault(caller, {})[method] = Served(
            at=self._clock.now(), method=method, identities=tuple(identities)
        )

    def served(self, caller: Caller) -> tuple[Served, ...]:
        """What a caller was given last, by each method that it called."""
        return tuple(self._served.get(caller, {}).values())

    def callers(self) -> tuple[Caller, ...]:
        """Everybody who was given something, or is about to be, and is still connected."""
        known = dict.fromkeys((*(s.caller for s in self.streams), *self._served))
        return tuple(caller for caller in known if caller.process.is_alive())

    def latest(self) -> tuple[OpenStream, ...]:
        """Of each caller the stream that it opened last."""
        return tuple({stream.caller: stream for stream in self.streams}.values())

    def wake(self, concerns: Callable[[OpenStream], bool]) -> int:
        """Tell the streams that something concerns; how many these are."""
        concerned = [stream for stream in self._streams if concerns(stream)]
        for stream in concerned:
            stream.changed.set()
        return len(concerned)

    async def run(self) -> None:
        """Tell streams when an entry that they show has come to its end, for ever."""
        while True:
            await self._clock.sleep(self.wake_ended())

    def wake_ended(self) -> float:
        """Tell the streams that show an entry which has come to its end.

        Returns:
            In how many seconds to do so again.
        """
        now, left = self._clock.now(), TICK_SECONDS
        for stream, end in self._ending.items():
            if end <= now:
                stream.changed.set()
            else:
                left = min(left, (end - now).total_seconds())
        return max(left, SHORTEST_TICK_SECONDS)


class _Listed:
    """A stream that is in the lists, for the block."""

    __slots__ = ("_ending", "_stream", "_streams")

    def __init__(
        self, stream: OpenStream, streams: set[OpenStream], ending: dict[OpenStream, datetime]
    ) -> None:
        self._stream = stream
        self._streams = streams
        self._ending = ending

    def __enter__(self) -> OpenStream:
        self._streams.add(self._stream)
        return self._stream

    def __exit__(self, *_error: object) -> None:
        self._streams.discard(self._stream)
        self._ending.pop(self._stream, None)
