"""Stored SVIDs that are issued anew after a restart, because they are not valid any more."""

from __future__ import annotations

import datetime as dt

from agent.authority.authority_set import AuthorityKind
from agent.svids.sealed_file import unseal
from tests.support.fakes import START, identity
from tests.unit.svids.disk_cache.conftest import MINUTE, SECRET, TD, Host


async def test_an_svid_that_is_due_at_the_start_is_issued_anew(host: Host) -> None:
    async with host.agent() as agent:
        before = agent.serials("a")
    host.clock.set(START + 31 * MINUTE)
    async with host.agent() as agent:
        assert agent.serials("a") != before


async def test_an_svid_that_becomes_due_after_the_start_is_issued_anew(host: Host) -> None:
    async with host.agent() as agent:
        before = agent.serials("a")
    async with host.agent() as agent:
        host.clock.set(START + 31 * MINUTE)
        assert agent.serials("a") != before


async def test_an_svid_of_a_tainted_authority_is_issued_anew(host: Host) -> None:
    async with host.agent() as agent:
        before = agent.serials("a")
    old = host.authority.authorities.active_x509.id
    await host.authority.prepare(AuthorityKind.X509)
    await host.authority.activate(AuthorityKind.X509)
    async with host.agent() as agent:
        assert agent.serials("a") == before, "retired is not tainted"
    await host.authority.taint(old)
    async with host.agent() as agent:
        after = agent.serials("a")
        assert after != before
    await host.authority.revoke(old)
    async with host.agent() as agent:
        assert agent.serials("a") == after


async def test_an_svid_of_a_revoked_authority_is_issued_anew(host: Host) -> None:
    async with host.agent() as agent:
        before = agent.serials("a")
    old = host.authority.authorities.active_x509.id
    await host.authority.prepare(AuthorityKind.X509)
    await host.authority.activate(AuthorityKind.X509)
    await host.authority.taint(old)
    await host.authority.revoke(old)
    async with host.agent() as agent:
        assert agent.serials("a") != before
    assert "no valid path" in host.reasons("stored svid not used")[0]


async def test_an_svid_longer_than_the_present_ttl_is_issued_anew(host: Host) -> None:
    """The operator has shortened the TTL and restarted the agent."""
    async with host.agent() as agent:
        before = agent.serials("a")
    async with host.agent(ttl=59 * MINUTE) as agent:
        assert agent.svids.get(identity()).not_after == START + 59 * MINUTE
        assert agent.serials("a") != before


async def test_after_the_clock_was_set_back_svids_are_issued_anew(host: Host) -> None:
    async with host.agent() as agent:
        before = agent.serials("a")
    host.clock.set(START - dt.timedelta(seconds=9))
    async with host.agent() as agent:
        # The authority is valid from ten seconds before its creation, and so can sign.
        assert agent.serials("a") != before


async def test_the_key_of_a_single_process_is_never_on_disk(host: Host) -> None:
    mine = identity(holder="process:1")
    async with host.agent() as agent:
        of_one_process = agent.svids.get(mine)
        shared = agent.svids.get(identity("shared"))
    stored = unseal(host.file.read_bytes(), SECRET, TD)
    assert [each.key_der for each in stored.svids] == [shared.key_der]
    files = [each.read_bytes() for each in host.keystore.directory.iterdir()]
    assert not any(of_one_process.key_der in content for content in files)
    async with host.agent() as agent:
        assert agent.svids.get(mine).key_der != of_one_process.key_der


async def test_a_restored_backup_gives_no_svid_that_is_due(host: Host) -> None:
    """The operator restores a backup of the data directory."""
    async with host.agent() as agent:
        first = agent.serials("a")
    old = host.file.read_bytes()
    host.clock.set(START + 31 * MINUTE)
    async with host.agent() as agent:
        second = agent.serials("a")
        of_b = agent.serials("b")
    host.file.write_bytes(old)
    async with host.agent() as agent:
        assert agent.serials("a") not in (first, second)
        assert agent.serials("b") != of_b
