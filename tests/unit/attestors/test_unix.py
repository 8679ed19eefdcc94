"""The unix attestor on this process: names, path and digest, and what a failure of one costs."""

from __future__ import annotations

import asyncio
import errno
import grp
import hashlib
import os
import pwd
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from agent.kernel.caller import Caller
from attestors.api import AttestorContext, AttestorError
from attestors.unix import (
    DIGESTS_PER_USER,
    Digests,
    FileKey,
    UnixAttestor,
    UnixOptions,
    digest_of,
)
from tests.support.unix import CountedDigests, find, values
from tests.support.workload import Workload

EXECUTABLE = Path("/proc/self/exe").resolve()


@pytest.fixture
async def attestor() -> AsyncIterator[UnixAttestor]:
    attestor = UnixAttestor(UnixOptions(), AttestorContext())
    yield attestor
    await attestor.close()


@pytest.fixture
async def counted() -> AsyncIterator[CountedDigests]:
    """An attestor whose digests are counted, and can be held."""
    async with CountedDigests() as counted:
        yield counted


async def test_selectors_have_the_facts_of_the_kernel_and_the_files(
    attestor: UnixAttestor, me: Caller
) -> None:
    found = await find(attestor, me)
    assert all(selector.type == "unix" for selector in found.selectors)
    assert values(found, "uid") == {str(os.geteuid())}
    assert values(found, "gid") == {str(os.getegid())}
    assert values(found, "user") == {pwd.getpwuid(os.geteuid()).pw_name}
    assert values(found, "group") == {grp.getgrgid(os.getegid()).gr_name}
    assert values(found, "supplementary_gid") == set(map(str, os.getgroups()))
    assert values(found, "path") == {str(EXECUTABLE)}
    assert values(found, "sha256") == {hashlib.sha256(EXECUTABLE.read_bytes()).hexdigest()}
    assert {each.kind for each in found.program} == {"path", "sha256"}
    assert not found.notes


async def test_id_without_a_name_has_no_name_selector(attestor: UnixAttestor, me: Caller) -> None:
    nameless = replace(
        me,
        credentials=replace(me.credentials, uid=4000000001, gid=4000000002, groups=(4000000003,)),
    )
    found = await find(attestor, nameless)
    assert values(found, "uid") == {"4000000001"}
    assert values(found, "supplementary_gid") == {"4000000003"}
    for key in ("user", "group", "supplementary_group"):
        assert values(found, key) == set()
    # Findings with a note are not shared with other connections: the name may soon exist.
    assert "no name on this host: uid 4000000001, gid 4000000002, gid 4000000003" in found.notes


async def test_supplementary_group_has_its_name(attestor: UnixAttestor, me: Caller) -> None:
    first = grp.getgrall()[0]
    member = replace(me, credentials=replace(me.credentials, groups=(first.gr_gid,)))
    assert values(await find(attestor, member), "supplementary_group") == {first.gr_name}


async def test_option_sha256_off_omits_the_digest(me: Caller) -> None:
    attestor = UnixAttestor(UnixOptions(sha256=False), AttestorContext())
    found = await find(attestor, me)
    assert values(found, "path")
    assert values(found, "sha256") == set()
    assert not found.notes
    await attestor.close()


async def test_executable_over_sha256_max_bytes_has_no_digest_but_a_note(me: Caller) -> None:
    attestor = UnixAttestor(UnixOptions(sha256_max_bytes=1000), AttestorContext())
    found = await find(attestor, me)
    assert values(found, "path")
    assert values(found, "sha256") == set()
    assert "over sha256_max_bytes (1000)" in found.notes[0]
    await attestor.close()


class Unreadable(Workload):
    """A process whose executable cannot be read, with this error."""

    def readlink(self, name: str) -> str:
        raise self._error(name)

    def stat(self, name: str) -> os.stat_result:
        raise self._error(name)

    def _error(self, name: str) -> OSError:
        assert name == "exe"
        assert self.error is not None
        return self.error


@pytest.mark.parametrize(
    ("number", "reason", "is_permanent"),
    [
        (errno.EACCES, "CAP_SYS_PTRACE", True),
        (errno.ENAMETOOLONG, "File name too long", True),
        (errno.ENOENT, "No such file", True),
        (errno.EIO, "Input/output error", False),
        (errno.ESTALE, "Stale file handle", False),
        (errno.EMFILE, "Too many open files", False),
    ],
)
async def test_unreadable_executable_costs_only_path_and_digest(
    attestor: UnixAttestor, number: int, reason: str, *, is_permanent: bool
) -> None:
    """An executable with a path over 4,095 bytes took the process's user with it."""
    error = OSError(number, os.strerror(number))
    found = await attestor.attest(Unreadable(b"", uid=os.getuid(), error=error))
    assert values(found, "uid") == {str(os.getuid())}
    assert values(found, "path") == values(found, "sha256") == set()
    text = found.notes if is_permanent else found.pending
    assert [reason in each for each in text if "unix:" in each] == [True, True]
    assert not (found.pending if is_permanent else [n for n in found.notes if "unix:" in n])


async def test_process_that_is_gone_is_a_failure(attestor: UnixAttestor) -> None:
    gone = Unreadable(b"", uid=os.getuid(), error=ProcessLookupError())
    with pytest.raises(AttestorError, match="the process exited"):
        await attestor.attest(gone)


# --- digests -------------------------------------------------------------------------------------


async def test_old_file_is_read_once(counted: CountedDigests, me: Caller) -> None:
    for _ in range(3):
        await find(counted.attestor, me)
    assert counted.count == 1


async def test_callers_at_the_same_time_share_one_read(counted: CountedDigests, me: Caller) -> None:
    counted.go.clear()
    async with asyncio.TaskGroup() as tasks:
        asking = [tasks.create_task(find(counted.attestor, me)) for _ in range(20)]
        await counted.begun()
        counted.go.set()
    assert counted.count == 1
    assert len({frozenset(task.result().selectors) for task in asking}) == 1


async def test_cancelled_caller_does_not_stop_the_read(counted: CountedDigests, me: Caller) -> None:
    counted.go.clear()
    task = asyncio.get_running_loop().create_task(find(counted.attestor, me))
    await counted.begun()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    counted.go.set()
    assert values(await find(counted.attestor, me), "sha256")
    assert counted.count == 1


async def test_other_selectors_do_not_wait_for_the_digest(me: Caller) -> None:
    async with CountedDigests(seconds=0.05) as counted:
        counted.go.clear()
        found = await find(counted.attestor, me)
        counted.go.set()
        assert values(found, "uid")
        assert values(found, "path")
        assert found.pending == ("unix:sha256 took too long",)
        await counted.ended()
        assert values(await find(counted.attestor, me), "sha256"), "the read went on"
        assert counted.count == 1


class OfUser(Workload):
    """A process of a user, whose executable is this test's interpreter."""

    def open(self, name: str) -> int:
        assert name == "exe"
        return os.open(EXECUTABLE, os.O_RDONLY)


async def test_user_with_many_executables_in_the_queue_gets_no_further_one_into_it() -> None:
    go = threading.Event()

    def read(descriptor: int, key: FileKey) -> str:
        os.close(descriptor)
        assert go.wait(10)
        return f"digest of {key.inode}"

    digests = Digests(read=read)
    until = asyncio.get_running_loop().time() + 60
    first, second = OfUser(b"", uid=1), OfUser(b"", uid=2)
    async with asyncio.TaskGroup() as tasks:
        for number in range(DIGESTS_PER_USER):
            key = FileKey(1, number, 0, 0, 0)
            tasks.create_task(digests.get(first, key, until))
        await asyncio.sleep(0)
        assert digests.waiting == DIGESTS_PER_USER
        with pytest.raises(AttestorError, match="4 other executables of this user are being read"):
            await digests.get(first, FileKey(1, 100, 0, 0, 0), until)
        other = tasks.create_task(digests.get(second, FileKey(1, 200, 0, 0, 0), until))
        go.set()
    assert other.result() == "digest of 200"
    assert digests.waiting == 0
    digests.close()


def test_file_that_changes_during_the_read_has_no_digest(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"before")
    key = FileKey.of(file.stat())
    file.write_bytes(b"and after")
    with pytest.raises(AttestorError, match="changed while it was read"):
        digest_of(os.open(file, os.O_RDONLY), key)
