"""A file that is damaged or cannot be written costs SVIDs, and never the agent."""

from __future__ import annotations

import asyncio
import datetime as dt
import threading
from collections.abc import Callable

import pytest

from agent.authority.keystore import Keystore, KeystoreError
from agent.svids import disk_cache
from tests.unit.svids.disk_cache.conftest import Host


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
        file.truncate(disk_cache.MAX_FILE_BYTES + 1)


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
            await host.clock.advance(dt.timedelta(seconds=disk_cache.RETRY_SECONDS))
            await agent.idle()
        assert host.said("svid cache not saved") == ["No space left on device"]
        full = False
        await host.clock.advance(dt.timedelta(seconds=disk_cache.RETRY_SECONDS))
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
