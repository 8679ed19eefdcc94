"""SVIDs that do not come back over a restart, because something is in doubt."""

from __future__ import annotations

import datetime as dt

from agent.authority.authority_set import AuthorityKind
from tests.support.fakes import START, identity
from tests.unit.svids.disk_cache.conftest import MINUTE, Host


async def test_one_that_is_due_is_made_anew(host: Host) -> None:
    async with host.agent() as agent:
        before = agent.serials("a")
    host.clock.set(START + 31 * MINUTE)
    async with host.agent() as agent:
        assert agent.serials("a") != before


async def test_one_that_became_due_after_the_start_is_made_anew(host: Host) -> None:
    async with host.agent() as agent:
        before = agent.serials("a")
    async with host.agent() as agent:
        host.clock.set(START + 31 * MINUTE)
        assert agent.serials("a") != before


async def test_what_a_tainted_authority_signed_does_not_come_back(host: Host) -> None:
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


async def test_what_a_revoked_authority_signed_does_not_come_back(host: Host) -> None:
    async with host.agent() as agent:
        before = agent.serials("a")
    old = host.authority.authorities.active_x509.id
    await host.authority.prepare(AuthorityKind.X509)
    await host.authority.activate(AuthorityKind.X509)
    await host.authority.taint(old)
    await host.authority.revoke(old)
    async with host.agent() as agent:
        assert agent.serials("a") != before
    assert "no valid path" in host.said("stored svid not used")[0]


async def test_what_would_outlive_a_new_one_does_not_come_back(host: Host) -> None:
    """An operator who made SVIDs shorter, and restarts, wants shorter ones."""
    async with host.agent() as agent:
        before = agent.serials("a")
    async with host.agent(ttl=59 * MINUTE) as agent:
        assert agent.svids.get(identity()).not_after == START + 59 * MINUTE
        assert agent.serials("a") != before


async def test_a_clock_that_was_set_back_gives_new_ones(host: Host) -> None:
    async with host.agent() as agent:
        before = agent.serials("a")
    host.clock.set(START - dt.timedelta(seconds=9))
    async with host.agent() as agent:
        # The authority was backdated by ten seconds, and so can sign.
        assert agent.serials("a") != before


async def test_the_key_of_one_process_is_never_on_disk(host: Host) -> None:
    mine = identity(holder="process:1")
    async with host.agent() as agent:
        before = agent.svids.get(mine)
        agent.serials("shared")
    async with host.agent() as agent:
        assert host.lines.of("svid cache loaded")[-1]["svids"] == 1
        assert agent.svids.get(mine).key_der != before.key_der


async def test_an_old_file_gives_at_worst_an_old_svid_that_is_good(host: Host) -> None:
    """Somebody restores a backup of the data directory."""
    async with host.agent() as agent:
        first = agent.serials("a")
    old = host.file.read_bytes()
    host.clock.set(START + 31 * MINUTE)
    async with host.agent() as agent:
        second = agent.serials("a")
        new_comer = agent.serials("b")
    host.file.write_bytes(old)
    async with host.agent() as agent:
        assert agent.serials("a") not in (first, second)
        assert agent.serials("b") != new_comer
