"""Stored SVIDs are served again after a restart, from a file that stays small."""

from __future__ import annotations

import asyncio
import datetime as dt
import stat

import pytest

from agent.authority.keystore import Keystore
from agent.svids.disk_cache import FILE
from tests.support.fakes import START, identity
from tests.unit.svids.disk_cache.conftest import MINUTE, Host


async def test_after_a_restart_each_identity_has_its_former_svid(host: Host) -> None:
    async with host.agent() as agent:
        before = [agent.svids.get(identity(name)) for name in "abc"]
    async with host.agent() as agent:
        assert [agent.svids.get(identity(name)) for name in "abc"] == before
    assert host.lines.of("svid cache loaded")[-1]["count"] == 3
    assert stat.S_IMODE(host.file.stat().st_mode) == 0o600


async def test_an_svid_that_is_a_second_old_survives_a_kill(host: Host) -> None:
    async with host.agent(killed=True) as agent:
        before = agent.serials("a", "b")
        await agent.saved()
        before += agent.serials("c")
        await agent.saved()
        agent.serials("too-late")
    async with host.agent() as agent:
        assert agent.serials("a", "b", "c") == before
        assert agent.serials("too-late")


async def test_an_svid_that_no_call_asked_for_survives_two_restarts(host: Host) -> None:
    async with host.agent() as agent:
        before = agent.serials("slow")
    async with host.agent(killed=True) as agent:
        agent.serials("quick")
        await agent.saved()
    async with host.agent() as agent:
        assert agent.serials("slow") == before


async def test_a_new_svid_is_appended_without_a_rewrite(host: Host) -> None:
    async with host.agent() as agent:
        agent.serials("a", "b", "c")
        await agent.saved()
        inode, size = host.file.stat().st_ino, host.file.stat().st_size
        agent.serials("d")
        await agent.saved()
        assert host.file.stat().st_ino == inode
        assert size < host.file.stat().st_size < size + 1000


async def test_svids_issued_within_a_second_are_one_save(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
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


async def test_outdated_records_leave_the_file(host: Host) -> None:
    sizes = []
    async with host.agent(slack=5) as agent:
        for _ in range(60):
            agent.serials("a", "b")
            await agent.saved()
            sizes.append(host.file.stat().st_size)
            host.clock.set(host.clock.now() + 31 * MINUTE)
            await host.authority.take_due_steps()
    assert max(sizes) < 12 * 1000
    assert host.reasons("svid cache not saved") == []


async def test_the_oldest_svids_make_room(host: Host) -> None:
    async with host.agent(max_svids=3) as agent:
        before = agent.serials("a", "b", "c", "d", "e")
    async with host.agent() as agent:
        assert agent.serials("c", "d", "e") == before[2:]
        assert host.lines.of("svid cache loaded")[-1]["count"] == 3


async def test_the_renewal_time_survives_a_restart(host: Host) -> None:
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
