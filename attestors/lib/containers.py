"""Containers as their engine describes them, wherever the kernel agrees.

An engine is asked by a container's ID, which was read from a cgroup's name. Its answer names the
container's first process; the caller must be in the very cgroup that this process is in. So neither
a cgroup of the right name in another place nor a wrong word of the engine yields the container.

What was found is kept while that first process lives and the engine's stream of events reports no
change. While an engine cannot be reached it can change nothing either, and what it said before the
stream broke is still good; once it is back it is asked anew.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cachetools import LRUCache

from attestors.api import AttestorError
from attestors.lib.engine import ANSWER_SECONDS
from attestors.lib.http import UnreachableError
from attestors.lib.once import SharedWork
from attestors.lib.processes import ContainerInit

if TYPE_CHECKING:
    from attestors.lib.cgroups import Container
    from attestors.lib.engine import EngineClient

# Each holds one descriptor.
KEPT = 1024
# A container that starts is reported as running a moment after its first process runs.
PAUSES_SECONDS = (0.05, 0.1, 0.2)
# How long to wait for the stream of events before the first question.
OPENING_SECONDS = 0.5
# How long one question may take in all: the answer, and a container that is about to run.
ASKING_SECONDS = ANSWER_SECONDS + OPENING_SECONDS + 1.5
# How long what an attestor was told is good for one connection. A change, such as a new name, is
# reported by the engine at once; this spares calls.
REUSE_SECONDS = 1.0
# How long to wait before the next try to open it.
REOPEN_SECONDS = (0.1, 5.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """A container that engine and kernel agree on."""

    facts: frozenset[str]
    place: Container
    started: int
    """When its first process was, in clock ticks since boot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kept:
    described: Described
    init: ContainerInit
    era: int
    """Which opening of the stream of events reports its changes."""


class _KeptContainers(LRUCache[str, _Kept]):
    """Closes the pidfd of each container that it drops."""

    def __delitem__(self, container_id: str) -> None:
        self[container_id].init.close()
        super().__delitem__(container_id)


class Containers:
    """The containers of one engine. It owns the client, what is kept, and its tasks.

    Without `follow` nothing is kept: a user's own engine could report changes without end.
    """

    def __init__(self, client: EngineClient, own_cgroup: bytes, *, follow: bool = True) -> None:
        self._client = client
        self._own_cgroup = own_cgroup
        self._follow = follow
        self._kept = _KeptContainers(KEPT)
        self._unchanged: set[str] = set()
        self._asking: SharedWork[str, Described | None] = SharedWork()
        self._following: SharedWork[None, None] = SharedWork()
        self._era = 0
        self._open = False
        self._tried = asyncio.Event()

    async def facts(self, container: Container, started: int) -> frozenset[str] | None:
        """What the engine says of this container, to a process of it; None if it knows none.

        `started` is when that process was, in clock ticks since boot.

        Raises:
            AttestorError: the engine cannot say, or the kernel does not agree.
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
        """End the connections to the engine and forget everything."""
        await self._following.close()
        await self._asking.close()
        await self._client.close()
        while self._kept:
            self._kept.popitem()

    async def _describe(self, container_id: str) -> Described | None:
        kept = self._recall(container_id)
        if kept is not None and self._open and kept.era == self._era:
            return kept.described
        try:
            return await self._asking.get(container_id, lambda: self._ask(container_id))
        except UnreachableError:
            kept = self._recall(container_id)
            # It was there in between, and nobody listened: it may have changed something.
            if kept is None or kept.era != self._era:
                raise
            return kept.described

    async def _ask(self, container_id: str) -> Described | None:
        if self._follow:
            await self._wait_for_events()
        era = self._era
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
            self._keep(container_id, _Kept(described=described, init=init, era=era))
        else:
            init.close()
        return described

    async def _find(self, container_id: str) -> tuple[Described, ContainerInit] | None:
        """The container, and its first process, which whoever asks closes."""
        for pause in (*PAUSES_SECONDS, None):
            answer = await self._client.inspect(container_id)
            if answer is None:
                return None
            if answer.state.pid > 0:
                init = ContainerInit.open(answer.state.pid, self._own_cgroup)
                described = Described(
                    facts=answer.facts, place=init.container, started=init.started
                )
                return described, init
            if pause is not None:
                await asyncio.sleep(pause)
        raise AttestorError(f"the engine says that container {container_id[:12]} does not run")

    # --- what is kept ---------------------------------------------------------------------------

    def _recall(self, container_id: str) -> _Kept | None:
        kept = self._kept.get(container_id)
        if kept is None:
            return None
        if not kept.init.is_alive:
            self._forget(container_id)
            return None
        return kept

    def _keep(self, container_id: str, kept: _Kept) -> None:
        self._forget(container_id)
        self._kept[container_id] = kept

    def _forget(self, container_id: str) -> None:
        self._kept.pop(container_id, None)

    # --- the engine's stream of events ----------------------------------------------------------

    async def _wait_for_events(self) -> None:
        """What is asked before the stream is open has to be asked again once it is."""
        self._following.begin(None, self._listen)
        if not self._open:
            with suppress(TimeoutError):
                async with asyncio.timeout(OPENING_SECONDS):
                    await self._tried.wait()

    async def _listen(self) -> None:
        pause = REOPEN_SECONDS[0]
        while True:
            try:
                async for container_id in self._client.changes(self._opened):
                    self._unchanged.discard(container_id)
                    self._forget(container_id)
            except AttestorError:
                pause = REOPEN_SECONDS[0] if self._open else min(2 * pause, REOPEN_SECONDS[1])
            finally:
                # However it ended: from here on nobody reports changes.
                self._open = False
                self._tried.set()
            await asyncio.sleep(pause)

    def _opened(self) -> None:
        self._era += 1
        self._open = True
        self._tried.set()
