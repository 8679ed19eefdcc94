"""Lockouts on a real socket file, read with getfacl(1): they end, and the operator's list stays."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import shutil
import socket
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from agent.limits.lockout import HANG_UPS_AT_ONCE, MOST_USERS, Lockout
from agent.signals import NO_SIGNALS
from tests.support.agent import SAFETY_SECONDS
from tests.support.fakes import FakeLog

pytestmark = pytest.mark.skipif(
    shutil.which("getfacl") is None, reason="getfacl and setfacl are not installed (Debian: acl)"
)

FLOODER, OTHER, THIRD = 2001, 2002, 2003


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    with closing(socket.socket(socket.AF_UNIX)) as sock:
        sock.bind(os.fspath(tmp_path / "s"))
        (tmp_path / "s").chmod(0o660)
        yield tmp_path / "s"


def lockout(path: Path, lines: FakeLog | None = None) -> Lockout:
    log = (lines or FakeLog()).log
    return Lockout(asyncio.get_running_loop(), os.fspath(path), log, NO_SIGNALS, 0.02)


def acl(path: Path) -> list[str]:
    """The list as getfacl(1) shows it."""
    command = [
        "getfacl",
        "--omit-header",
        "--no-effective",
        "--numeric",
        "--absolute-names",
        os.fspath(path),
    ]
    listed = subprocess.run(command, check=True, capture_output=True, text=True)
    return str(listed.stdout).split()


def locked(path: Path) -> list[str]:
    return [entry for entry in acl(path) if re.fullmatch(r"user:\d+:--x", entry)]


def flood(of: Lockout, uid: int = FLOODER) -> None:
    of.hung_up(uid, HANG_UPS_AT_ONCE + 1)


async def until_open(path: Path) -> None:
    async with asyncio.timeout(SAFETY_SECONDS):
        while locked(path):
            await asyncio.sleep(0.005)


async def test_a_flooding_user_is_locked_out_for_a_while_and_no_other(path: Path) -> None:
    before, mode = acl(path), path.stat().st_mode
    lines = FakeLog()
    locks = lockout(path, lines)
    locks.hung_up(OTHER, 100)
    flood(locks)
    assert f"user:{FLOODER}:--x" in acl(path)
    assert not [entry for entry in acl(path) if entry.startswith(f"user:{OTHER}")]
    assert {"user::rw-", "group::rw-", "mask::rw-", "other::---"} < set(acl(path))
    [line] = lines.of("user locked out")
    assert line["uid"] == FLOODER
    await until_open(path)
    assert acl(path) == before
    assert path.stat().st_mode == mode
    locks.close()


async def test_entries_of_the_operator_stay(path: Path) -> None:
    """Entries that deny stay, and so do entries that allow the flooding user."""
    rules = f"u:3000:rw,u:3002:---,u:{FLOODER}:rw,g:3001:r,m::rw"
    subprocess.run(["setfacl", "-m", rules, path], check=True)
    before = acl(path)
    locks = lockout(path)
    assert acl(path) == before
    flood(locks)
    assert set(acl(path)) == {*before, f"user:{FLOODER}:--x"}
    await until_open(path)
    assert acl(path) == before
    locks.close()


async def test_rights_that_the_group_loses_during_a_lockout_stay_lost(path: Path) -> None:
    locks = lockout(path)
    flood(locks)
    path.chmod(0o600)
    await until_open(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert acl(path) == ["user::rw-", "group::---", "other::---"]
    locks.close()


def fill_up(patch: pytest.MonkeyPatch) -> asyncio.Queue[None]:
    """Let every write of the list fail; each attempt is put into the queue."""
    tries: asyncio.Queue[None] = asyncio.Queue()

    def fail(*_arguments: object, **_options: object) -> None:
        tries.put_nowait(None)
        raise OSError(errno.ENOSPC, "No space left on device")

    patch.setattr(os, "setxattr", fail)
    return tries


async def two_of(tries: asyncio.Queue[None]) -> None:
    async with asyncio.timeout(SAFETY_SECONDS):
        for _ in range(2):
            await tries.get()


async def test_a_failed_write_is_retried_until_the_lockout_ends(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = FakeLog()
    locks = lockout(path, lines)
    flood(locks)
    with monkeypatch.context() as patch:
        tries = fill_up(patch)
        flood(locks, OTHER)
        await two_of(tries)  # OTHER cannot be locked out, and FLOODER cannot be released
        assert locked(path) == [f"user:{FLOODER}:--x"]
        assert lines.of("lockout failed")
    await until_open(path)
    locks.close()


async def test_close_cancels_all_retries(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next owner of the path has a list of its own."""
    timers: list[asyncio.TimerHandle] = []
    loop = asyncio.get_running_loop()
    call_later = loop.call_later

    def note(delay: float, callback: Callable[..., object], *args: Any) -> asyncio.TimerHandle:
        timers.append(call_later(delay, callback, *args))
        return timers[-1]

    monkeypatch.setattr(loop, "call_later", note)
    locks = lockout(path)
    for uid in (FLOODER, OTHER):
        flood(locks, uid)
    with monkeypatch.context() as patch:
        await two_of(fill_up(patch))  # neither of them can be released
    flood(locks, THIRD)
    locks.close()
    assert not locks.users
    assert not locked(path)
    to_come = timers[2:]  # both lockouts that ended have left a retry
    assert len(to_come) == 3
    assert all(timer.cancelled() for timer in to_come)


async def test_root_and_the_owner_of_the_file_are_never_locked_out(path: Path) -> None:
    if os.geteuid() == 0:  # else the owner is not root anyway
        os.chown(path, FLOODER, -1)
    locks = lockout(path)
    for uid in (0, path.stat().st_uid, OTHER):
        flood(locks, uid)
    assert locked(path) == [f"user:{OTHER}:--x"]
    locks.close()


async def test_user_that_stops_is_free_after_one_lockout(
    path: Path,
) -> None:
    locks = lockout(path)
    for _ in range(1000):
        flood(locks)
    bucket = locks._buckets[FLOODER]
    assert bucket.seconds_until(0, asyncio.get_running_loop().time()) <= 1.0
    locks.close()


async def test_entries_of_a_killed_agent_are_removed_at_the_start(path: Path) -> None:
    before = acl(path)
    flood(lockout(path))
    assert acl(path) != before
    lockout(path).close()
    assert acl(path) == before


async def test_the_number_of_users_that_are_locked_out_is_bounded(path: Path) -> None:
    locks = lockout(path)
    for uid in range(3000, 3000 + 2 * MOST_USERS):
        flood(locks, uid)
    assert len(locked(path)) == MOST_USERS
    locks.close()


async def test_a_list_that_cannot_be_written_is_logged_with_advice(tmp_path: Path) -> None:
    lines = FakeLog()
    locks = lockout(tmp_path / "gone", lines)
    flood(locks)
    flood(locks, OTHER)
    [line] = lines.of("lockout failed")
    assert "SocketUser=" in line["advice"]
    assert not lines.of("user locked out")
    locks.close()
