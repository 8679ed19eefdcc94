"""SVIDs over a restart: the same ones, from a file that stays small."""

from __future__ import annotations

import asyncio
import datetime as dt
import stat

import pytest

from agent.authority.keystore import Keystore
from agent.svids import disk_cache
from agent.svids.disk_cache import FILE
from tests.support.fakes import START, identity
from tests.unit.svids.disk_cache.conftest import MINUTE, Host


async def test_after_a_restart_everybody_has_what_they_had(host: Host) -> None:
    async with host.agent() as agent:
        before = [agent.svids.get(identity(name)) for name in "abc"]
    async with host.agent() as agent:
        assert [agent.svids.get(identity(name)) for name in "abc"] == before
    assert host.lines.of("svid cache loaded")[-1]["svids"] == 3
    assert stat.S_IMODE(host.file.stat().st_mode) == 0o600


async def test_what_is_a_second_old_survives_a_kill(host: Host) -> None:
    async with host.agent(killed=True) as agent:
        before = agent.serials("a", "b")
        await agent.saved()
        before += agent.serials("c")
        await agent.saved()
        agent.serials("too-late")
    async with host.agent() as agent:
        assert agent.serials("a", "b", "c") == before
        assert agent.serials("too-late")


async def test_two_restarts_in_a_row_lose_nobody_who_is_slow_to_come_back(host: Host) -> None:
    async with host.agent() as agent:
        before = agent.serials("slow")
    async with host.agent(killed=True) as agent:
        agent.serials("quick")
        await agent.saved()
    async with host.agent() as agent:
        assert agent.serials("slow") == before


async def test_a_new_one_is_added_to_the_file_not_all_written_again(host: Host) -> None:
    async with host.agent() as agent:
        agent.serials("a", "b", "c")
        await agent.saved()
        inode, size = host.file.stat().st_ino, host.file.stat().st_size
        agent.serials("d")
        await agent.saved()
        assert host.file.stat().st_ino == inode
        assert size < host.file.stat().st_size < size + 1000


async def test_many_at_once_are_one_save(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    saves: list[str] = []
    monkeypatch.setattr(
        Keystore, "append", lambda _self, name, chunks: saves.append(name + str(len([*chunks])))
    )
    async with host.agent(killed=True) as agent:
        agent.serials("first")
        await agent.saved()
        for name in "abcdefgh":
            agent.serials(name)
            await host.clock.advance(dt.timedelta(milliseconds=100))
        await agent.saved()
    assert saves == [FILE + "8"]


async def test_what_is_outdated_leaves_the_file(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_cache, "SLACK", 5)
    sizes = []
    async with host.agent() as agent:
        for _ in range(60):
            agent.serials("a", "b")
            await agent.saved()
            sizes.append(host.file.stat().st_size)
            host.clock.set(host.clock.now() + 31 * MINUTE)
            await host.authority.catch_up()
    assert max(sizes) < 12 * 1000
    assert host.said("svid cache not saved") == []


async def test_it_has_a_bound(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_cache, "MAX_SVIDS", 3)
    async with host.agent() as agent:
        before = agent.serials("a", "b", "c", "d", "e")
    async with host.agent() as agent:
        assert agent.serials("c", "d", "e") == before[2:]
        assert host.lines.of("svid cache loaded")[-1]["svids"] == 3


async def test_the_moment_of_renewal_is_kept(host: Host) -> None:
    async with host.agent() as agent:
        before = agent.svids.get(identity())
    host.clock.set(START + 20 * MINUTE)
    async with host.agent() as agent:
        changed = asyncio.Event()
        assert agent.svids.get(identity()).renew_at == before.renew_at
        with agent.svids.watch([identity()], changed):
            host.clock.set(START + 29 * MINUTE)
            agent.svids.renew_due()
            assert not changed.is_set()
            host.clock.set(START + 31 * MINUTE)
            agent.svids.renew_due()
            assert changed.is_set()
            assert agent.serials("a") != [before.serial]
