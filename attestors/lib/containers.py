"""Containers as their engine describes them, checked against the kernel.

The attestor asks the engine by the container's ID, which is part of the name of the cgroup. The
answer names the container's first process. The caller must be in the same cgroup as this process,
so neither a cgroup of that name in another place nor a false answer of the engine yields the
container.

An answer is kept while that first process lives and the engine's event stream reports no change. An
engine that cannot be reached cannot change anything either: its answers from before stay valid.
After it is back, it is asked anew.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from cachetools import LRUCache

from attestors.api import AttestorError
from attestors.lib.engine import ANSWER_SECONDS, EngineClient
from attestors.lib.http import UnreachableError
from attestors.lib.once import SharedWork
from attestors.lib.processes import ContainerInit

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from attestors.lib.cgroups import Container

# Each kept container holds one descriptor.
KEPT = 1024
# An engine reports a container as running a moment after its first process runs.
PAUSES_SECONDS = (0.05, 0.1, 0.2)
# The wait for the event stream, before the first question.
OPENING_SECONDS = 0.5
# The longest time of one question: the answer, and a container that is about to run.
ASKING_SECONDS = ANSWER_SECONDS + OPENING_SECONDS + 1.5
# How long a connection uses an answer again. The engine reports a change, such as a new name, at
# once; this saves calls of the attestor.
REUSE_SECONDS = 1.0
# The first and the longest pause before the event stream is opened again.
REOPEN_SECONDS = (0.1, 5.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """A container about which engine and kernel agree."""

    facts: frozenset[str]
    place: Container
    started: int
    """Start time of its first process, in clock ticks since boot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kept:
    described: Described
    init: ContainerInit
    stream: int
    """The number of the event stream that reports its changes."""


class _KeptContainers(LRUCache[str, _Kept]):
    """The kept containers, by ID. It closes the pidfd of each container that it drops."""

    def __delitem__(self, container_id: str) -> None:
        self[container_id].init.close()
        super().__delitem__(container_id)


class Containers:
    """The containers of one engine. It owns the client, the kept answers, and its tasks.

    Without `follow` it opens no event stream and keeps no answers.
    """

    def __init__(
        self,
        client: EngineClient,
        own_cgroup: bytes,
        *,
        follow: bool = True,
        kept: int = KEPT,
        pauses: Sequence[float] = PAUSES_SECONDS,
        open_init: Callable[[int, bytes], ContainerInit] = ContainerInit.open,
    ) -> None:
        self._client = client
        self._own_cgroup = own_cgroup
        self._follow = follow
        self._pauses = pauses
        self._open_init = open_init
        self._kept = _KeptContainers(kept)
        self._unchanged: set[str] = set()
        """The containers that are asked about now and have not changed since the question."""
        self._asking: SharedWork[str, Described | None] = SharedWork()
        self._following: SharedWork[None, None] = SharedWork()
        self._stream = 0
        self._is_open = False
        self._tried = asyncio.Event()

    @classmethod
    def of(cls, socket: str, own_cgroup: bytes, *, follow: bool = True) -> Self:
        """Return the containers of the engine that listens on this socket."""
        return cls(EngineClient(socket), own_cgroup, follow=follow)

    @property
    def is_following(self) -> bool:
        """Whether the event stream is open."""
        return self._is_open

    @property
    def kept(self) -> frozenset[str]:
        """The IDs of the containers whose answers are kept."""
        return frozenset(self._kept)

    async def facts(self, container: Container, started: int) -> frozenset[str] | None:
        """Return the engine's facts about a process's container; None if it knows no such one.

        `started` is the start time of the process, in clock ticks since boot.

        Raises:
            AttestorError: the engine cannot tell, or the kernel does not agree.
        """
        described = await self._describe(container.id)
        if described is None:
            return None
        if not container.is_same(described.place):
            raise AttestorError(
                f"container {container.id[:12]} of the engine is in another cgroup than the process"
            )
        if started < described.started:
            raise AttestorError(f"the process is older than its container {container.id[:12]}")
        return described.facts

    async def close(self) -> None:
        """Close the connections to the engine and drop all answers."""
        await self._following.close()
        await self._asking.close()
        await self._client.close()
        while self._kept:
            self._kept.popitem()

    async def _describe(self, container_id: str) -> Described | None:
        kept = self._recall(container_id)
        if kept is not None and self._is_open and kept.stream == self._stream:
            return kept.described
        try:
            return await self._asking.get(container_id, lambda: self._ask(container_id))
        except UnreachableError:
            kept = self._recall(container_id)
            # Between two streams the engine was up: it may have changed the container.
            if kept is None or kept.stream != self._stream:
                raise
            return kept.described

    async def _ask(self, container_id: str) -> Described | None:
        if self._follow:
            await self._wait_for_events()
        stream = self._stream
        self._unchanged.add(container_id)
        try:
            found = await self._find(container_id)
            unchanged = container_id in self._unchanged
        finally:
            self._unchanged.discard(container_id)
        if found is None:
            self._forget(container_id)
            return None
        described, init = found
        if self._follow and unchanged:
            self._forget(container_id)
            self._kept[container_id] = _Kept(described=described, init=init, stream=stream)
        else:
            init.close()
        return described

    async def _find(self, container_id: str) -> tuple[Described, ContainerInit] | None:
        """Ask for the container and open its first process; the caller closes it."""
        for pause in (*self._pauses, None):
            answer = await self._client.inspect(container_id)
            if answer is None:
                return None
            if answer.state.pid > 0:
                init = self._open_init(answer.state.pid, self._own_cgroup)
                described = Described(
                    facts=answer.facts, place=init.container, started=init.started
                )
                return described, init
            if pause is not None:
                await asyncio.sleep(pause)
        raise AttestorError(f"the engine says that container {container_id[:12]} does not run")

    # --- the kept answers -----------------------------------------------------------------------

    def _recall(self, container_id: str) -> _Kept | None:
        kept = self._kept.get(container_id)
        if kept is None:
            return None
        if not kept.init.is_alive:
            self._forget(container_id)
            return None
        return kept

    def _forget(self, container_id: str) -> None:
        self._kept.pop(container_id, None)

    # --- the event stream -----------------------------------------------------------------------

    async def _wait_for_events(self) -> None:
        """Open the event stream. Answers from before it is open are not kept."""
        self._following.begin(None, self._listen)
        if not self._is_open:
            with suppress(TimeoutError):
                async with asyncio.timeout(OPENING_SECONDS):
                    await self._tried.wait()

    async def _listen(self) -> None:
        shortest, longest = REOPEN_SECONDS
        pause = shortest
        while True:
            try:
                async for container_id in self._client.changes(self._opened):
                    self._unchanged.discard(container_id)
                    self._forget(container_id)
            except AttestorError:
                pause = shortest if self._is_open else min(2 * pause, longest)
            finally:
                # From here on no change is reported.
                self._is_open = False
                self._tried.set()
            await asyncio.sleep(pause)

    def _opened(self) -> None:
        self._stream += 1
        self._is_open = True
        self._tried.set()
