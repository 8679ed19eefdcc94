"""A damaged or unwritable cache costs clients a new SVID and never stops the agent."""

from __future__ import annotations

import asyncio
import datetime as dt
import threading
from collections.abc import Callable, Iterable

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
        (_wrong_key, "its key or trust domain is another, or it is damaged; missing SVIDs"),
        (_cut, "it is cut off in the middle"),
        (_emptied, "it is empty, damaged, or of another version"),
        (_zeros, "it is empty, damaged, or of another version"),
        (_huge, "more than vouchd ever writes"),
        (_open_to_all, "(mode 0644)"),
        (_link, "it is a symbolic link"),
    ],
)
async def test_an_unusable_file_is_one_log_line_and_new_svids(
    host: Host, damage: Callable[[Host], None], reason: str
) -> None:
    async with host.agent() as agent:
        before = agent.serials("a")
    damage(host)
    async with host.agent() as agent:
        after = agent.serials("a")
        assert after != before
    [reason_logged] = host.reasons("svid cache not used")
    assert reason in reason_logged
    assert str(host.file) in reason_logged
    async with host.agent() as agent:
        assert agent.serials("a") == after, "the file was replaced"
    assert len(host.reasons("svid cache not used")) == 1


async def test_half_a_record_at_the_end_costs_only_its_svid(host: Host) -> None:
    async with host.agent() as agent:
        before = agent.serials("a", "b")
    _cut(host)
    async with host.agent() as agent:
        assert agent.serials("a") == before[:1]
        assert agent.serials("b") != before[1:]
    assert "cut off" in host.reasons("svid cache partly used")[0]


async def test_a_directory_in_the_place_of_the_file_stops_no_agent(host: Host) -> None:
    host.file.mkdir()
    async with host.agent() as agent:
        assert agent.serials("a")
    assert "not a regular file" in host.reasons("svid cache not used")[0]
    assert "directory" in host.reasons("svid cache not saved")[0].lower()


@pytest.mark.parametrize("append", [False, True])
async def test_a_full_disk_is_logged_once_and_the_svids_are_saved_later(
    host: Host, monkeypatch: pytest.MonkeyPatch, *, append: bool
) -> None:
    names, before, full = iter("abcdefghi"), list[int](), False
    for method in ("write_unsynced", "append"):
        real = getattr(Keystore, method)

        def fail(*arguments: object, real: Callable[..., None] = real) -> None:
            if full:
                raise KeystoreError("No space left on device")
            real(*arguments)

        monkeypatch.setattr(Keystore, method, fail)
    async with host.agent(killed=True) as agent:
        if append:
            before += agent.serials(next(names))
            await agent.saved()
        full = True
        before += agent.serials(next(names))
        await agent.saved()
        for _ in range(5):
            before += agent.serials(next(names))
            await host.clock.advance(dt.timedelta(seconds=disk_cache.RETRY_SECONDS))
            await agent.idle()
        [reason] = host.reasons("svid cache not saved")
        assert reason.startswith("No space left on device")
        full = False
        await host.clock.advance(dt.timedelta(seconds=disk_cache.RETRY_SECONDS))
        await agent.idle()
        assert host.lines.of("svid cache saved")
    async with host.agent() as agent:
        assert agent.serials(*"abcdefghi"[: len(before)]) == before


async def test_an_unexpected_error_of_a_save_does_not_end_the_agent(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Keystore, "write_unsynced", fail)
    async with host.agent() as agent:
        agent.serials("a")
        await agent.saved()
        assert agent.serials("b")
    assert len(host.reasons("svid cache not saved")) == 1


async def test_an_agent_that_stops_during_a_save_loses_no_svid(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    real = Keystore.write_unsynced

    def slow(self: Keystore, name: str, chunks: Iterable[bytes]) -> None:
        begun.set()
        assert go_on.wait(30)
        real(self, name, chunks)

    monkeypatch.setattr(Keystore, "write_unsynced", slow)
    async with host.agent() as agent:
        before = agent.serials("a")
        await host.clock.advance(dt.timedelta(seconds=disk_cache.SETTLE_SECONDS))
        assert await asyncio.to_thread(begun.wait, 30)
        before += agent.serials("b")  # a slow disk delays no call
        go_on.set()
    async with host.agent() as agent:
        assert agent.serials("a", "b") == before
