"""A host with a data directory, on which agents start, stop and are killed."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from agent.authority.embedded import AuthorityPolicy, EmbeddedAuthority
from agent.authority.keystore import Keystore
from agent.spiffe.ids import TrustDomain
from agent.spiffe.keys import KeyType
from agent.svids import disk_cache
from agent.svids.disk_cache import FILE, DiskCache
from agent.svids.x509 import X509Svids
from tests.support.fakes import FakeClock, FakeLog, identity, settle

TD = TrustDomain("example.org")
TTL = dt.timedelta(hours=1)
MINUTE = dt.timedelta(minutes=1)
SECRET = b"s" * 32


class Host:
    """The parts that outlive an agent: the data directory, the authority and the clock."""

    def __init__(self, directory: Path) -> None:
        self.clock = FakeClock()
        self.lines = FakeLog()
        self.keystore = Keystore(directory)
        self.file = directory / FILE
        self.secret = SECRET
        self.authority = EmbeddedAuthority.open(
            AuthorityPolicy(trust_domain=TD, key_type=KeyType.EC_P256, ttl=24 * TTL),
            self.keystore,
            self.clock,
            self.lines.log,
        )

    @asynccontextmanager
    async def agent(
        self, *, killed: bool = False, ttl: dt.timedelta = TTL, **bounds: Any
    ) -> AsyncIterator[Agent]:
        """An agent from its start to its stop, or until it is killed."""
        cache = DiskCache(
            self.keystore,
            self.secret,
            lambda: self.authority.bundle,
            self.clock,
            self.lines.log,
            **bounds,
        )
        cache.load()
        svids = X509Svids(self.authority, self.clock, ttl, lambda: 0.0, self.lines.log, store=cache)
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(cache.run())
            yield Agent(self, cache, svids)
            running.cancel()
        if killed:
            cache._thread.shutdown()
        else:
            await cache.close()

    def reasons(self, event: str) -> list[str]:
        return [str(line.get("reason")) for line in self.lines.of(event)]


class Agent:
    def __init__(self, host: Host, cache: DiskCache, svids: X509Svids) -> None:
        self._host = host
        self.cache = cache
        self.svids = svids

    def serials(self, *names: str) -> list[int]:
        return [self.svids.get(identity(name)).serial for name in names]

    async def saved(self) -> None:
        """Let the second before a save pass, and wait for the thread."""
        await self._host.clock.advance(dt.timedelta(seconds=disk_cache.SETTLE_SECONDS))
        await self.idle()

    async def idle(self) -> None:
        """Wait until the thread of the cache has nothing to do."""
        await asyncio.get_running_loop().run_in_executor(self.cache._thread, int)
        await settle()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path / "data")
    yield host
    host.authority.close()
    host.keystore.close()
