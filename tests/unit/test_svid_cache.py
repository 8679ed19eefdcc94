"""SVIDs over a restart: the same ones if they are good, new ones if anything is in doubt."""

from __future__ import annotations

import asyncio
import datetime as dt
import stat
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from agent import svid_cache
from agent.authorities import Kind
from agent.authority import Authority, AuthorityPolicy
from agent.keys import KeyType
from agent.keystore import Keystore, KeystoreError
from agent.spiffe import TrustDomain
from agent.svid_cache import CREDENTIAL, FILE, KEY_FILE, SvidCache, cache_secret
from agent.svids import Svids
from tests.support.fakes import START, FakeClock, Lines, identity, settle

TD = TrustDomain("example.org")
TTL = dt.timedelta(hours=1)
MINUTE = dt.timedelta(minutes=1)
SECRET = b"s" * 32


class Host:
    """What stays while agents come and go: a disk and a clock."""

    def __init__(self, directory: Path) -> None:
        self.clock = FakeClock()
        self.lines = Lines()
        self.keystore = Keystore(directory)
        self.file = directory / FILE
        self.secret = SECRET
        self.authority = Authority.open(
            AuthorityPolicy(trust_domain=TD, key_type=KeyType.EC_P256, ttl=24 * TTL),
            self.keystore,
            self.clock,
            self.lines.log,
        )

    @asynccontextmanager
    async def agent(self, *, killed: bool = False, ttl: dt.timedelta = TTL) -> AsyncIterator[Agent]:
        """An agent from its start to its stop, or until it is killed."""
        cache = SvidCache(
            self.keystore, self.secret, lambda: self.authority.bundle, self.clock, self.lines.log
        )
        cache.load()
        svids = Svids(self.authority, self.clock, ttl, lambda: 0.0, self.lines.log, shelf=cache)
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(cache.run())
            yield Agent(self, cache, svids)
            running.cancel()
        if killed:
            cache._thread.shutdown()
        else:
            await cache.close()

    def said(self, event: str) -> list[str]:
        return [str(line.get("reason")) for line in self.lines.of(event)]


class Agent:
    def __init__(self, host: Host, cache: SvidCache, svids: Svids) -> None:
        self._host = host
        self.cache = cache
        self.svids = svids

    def serials(self, *names: str) -> list[int]:
        return [self.svids.get(identity(name)).serial for name in names]

    async def saved(self) -> None:
        """Let the second pass after which is saved, and the thread do its work."""
        await self._host.clock.advance(dt.timedelta(seconds=svid_cache.SETTLE_SECONDS))
        await self.idle()

    async def idle(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self.cache._thread, int)
        await settle()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path / "data")
    yield host
    host.authority.close()
    host.keystore.close()


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
    monkeypatch.setattr(svid_cache, "SLACK", 5)
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
    monkeypatch.setattr(svid_cache, "MAX_SVIDS", 3)
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


# --- who gets a new one --------------------------------------------------------------------------


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
    await host.authority.prepare(Kind.X509)
    await host.authority.activate(Kind.X509)
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
    await host.authority.prepare(Kind.X509)
    await host.authority.activate(Kind.X509)
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


# --- never an error ------------------------------------------------------------------------------


def _wrong_key(host: Host) -> None:
    host.secret = b"t" * 32


def _cut(host: Host) -> None:
    host.file.write_bytes(host.file.read_bytes()[:-1])


def _emptied(host: Host) -> None:
    host.file.write_bytes(b"")


def _zeros(host: Host) -> None:
    host.file.write_bytes(bytes(host.file.stat().st_size))


def _huge(host: Host) -> None:
    with host.file.open("r+b") as file:
        file.truncate(svid_cache.MAX_FILE_BYTES + 1)


def _open_to_all(host: Host) -> None:
    host.file.chmod(0o644)


def _link(host: Host) -> None:
    host.file.rename(host.file.with_name("elsewhere"))
    host.file.symlink_to("elsewhere")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_wrong_key, "it is of another key or trust domain, or damaged; SVIDs that are missing"),
        (_cut, "it is cut off in the middle"),
        (_emptied, "it is empty, damaged, or of another version"),
        (_zeros, "it is empty, damaged, or of another version"),
        (_huge, "which vouchd never writes"),
        (_open_to_all, "is open to other users (mode 0644)"),
        (_link, "it is a symbolic link"),
    ],
)
async def test_a_file_that_is_of_no_use_is_one_line_and_new_svids(
    host: Host, damage: Callable[[Host], None], reason: str
) -> None:
    async with host.agent() as agent:
        before = agent.serials("a")
    damage(host)
    async with host.agent() as agent:
        after = agent.serials("a")
        assert after != before
    [said] = host.said("svid cache not used")
    assert reason in said
    assert str(host.file) in said
    async with host.agent() as agent:
        assert agent.serials("a") == after, "the next restart finds it in order"
    assert len(host.said("svid cache not used")) == 1


async def test_half_a_record_at_the_end_costs_only_that_one(host: Host) -> None:
    async with host.agent() as agent:
        before = agent.serials("a", "b")
    _cut(host)
    async with host.agent() as agent:
        assert agent.serials("a") == before[:1]
        assert agent.serials("b") != before[1:]
    assert "cut off" in host.said("svid cache used in part")[0]


async def test_a_file_that_cannot_be_replaced_is_no_error(host: Host) -> None:
    host.file.mkdir()
    async with host.agent() as agent:
        assert agent.serials("a")
    assert "not a regular file" in host.said("svid cache not used")[0]
    assert "directory" in host.said("svid cache not saved")[0].lower()


@pytest.mark.parametrize("step", ["spool", "append"])
async def test_a_full_disk_is_told_once_and_made_up_for_when_there_is_room(
    host: Host, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    async with host.agent(killed=True) as agent:
        before = agent.serials("a")
        await agent.saved()
        full = True
        for method in ("spool", "append"):
            real = getattr(Keystore, method)

            def fail(*arguments: object, real: Callable[..., None] = real) -> None:
                if full:
                    raise KeystoreError("No space left on device")
                real(*arguments)

            monkeypatch.setattr(Keystore, method, fail)
        if step == "spool":
            agent.cache._seal = None
        before += agent.serials("b")
        await agent.saved()
        for _ in range(5):
            before += agent.serials(f"c{len(before)}")
            await host.clock.advance(dt.timedelta(seconds=svid_cache.RETRY_SECONDS))
            await agent.idle()
        assert host.said("svid cache not saved") == ["No space left on device"]
        full = False
        await host.clock.advance(dt.timedelta(seconds=svid_cache.RETRY_SECONDS))
        await agent.idle()
        assert host.lines.of("svid cache saved again")
    async with host.agent() as agent:
        assert agent.serials("a", "b", "c2", "c3", "c4", "c5", "c6") == before


async def test_whatever_goes_wrong_the_agent_lives(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Keystore, "spool", fail)
    async with host.agent() as agent:
        agent.serials("a")
        await agent.saved()
        assert agent.serials("b")
    assert len(host.said("svid cache not saved")) == 1


async def test_stopped_in_the_middle_of_a_save_it_loses_nothing(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    real = Keystore.spool

    def slow(self: Keystore, *arguments: object) -> None:
        begun.set()
        assert go_on.wait(30)
        real(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Keystore, "spool", slow)
    async with host.agent() as agent:
        before = agent.serials("a")
        await host.clock.advance(dt.timedelta(seconds=1))
        assert await asyncio.to_thread(begun.wait, 30)
        before += agent.serials("b")  # a slow disk holds up nobody
        go_on.set()
    async with host.agent() as agent:
        assert agent.serials("a", "b") == before


# --- the secret ----------------------------------------------------------------------------------


def test_the_secret_is_made_once_and_is_private(host: Host) -> None:
    secret = cache_secret(host.keystore, None)
    assert len(secret) == 32
    assert cache_secret(host.keystore, None) == secret
    assert stat.S_IMODE((host.file.with_name(KEY_FILE)).stat().st_mode) == 0o600


def test_half_a_secret_is_replaced(host: Host) -> None:
    host.keystore.write(KEY_FILE, b"short")
    assert len(cache_secret(host.keystore, None)) == 32


def test_a_secret_that_others_could_read_is_refused(host: Host) -> None:
    cache_secret(host.keystore, None)
    host.file.with_name(KEY_FILE).chmod(0o640)
    with pytest.raises(KeystoreError, match=r"svids\.key is open to other users"):
        cache_secret(host.keystore, None)


def test_a_credential_comes_first_and_leaves_no_key_on_disk(host: Host, tmp_path: Path) -> None:
    (tmp_path / CREDENTIAL).write_bytes(b"c" * 40)
    assert cache_secret(host.keystore, tmp_path) == b"c" * 40
    assert not host.file.with_name(KEY_FILE).exists()


def test_other_credentials_do_not_matter(host: Host, tmp_path: Path) -> None:
    assert len(cache_secret(host.keystore, tmp_path)) == 32


def test_a_credential_that_is_too_short_is_refused(host: Host, tmp_path: Path) -> None:
    (tmp_path / CREDENTIAL).write_bytes(b"c" * 31)
    with pytest.raises(KeystoreError, match="has 31 bytes; give 32 at least"):
        cache_secret(host.keystore, tmp_path)


def test_a_credential_that_cannot_be_read_is_refused(host: Host, tmp_path: Path) -> None:
    (tmp_path / CREDENTIAL).mkdir()
    with pytest.raises(KeystoreError, match="cannot read the credential"):
        cache_secret(host.keystore, tmp_path)
