"""The unix attestor on this very process, and on executables made for the purpose."""

from __future__ import annotations

import asyncio
import grp
import hashlib
import os
import pwd
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

from agent.kernel.caller import Caller, identify
from agent.kernel.process import ProcessView
from attestors import unix
from attestors.api import AttestorContext, AttestorError, Findings, Selector
from attestors.unix import UnixAttestor, UnixOptions

NUMBERS = count()
EXECUTABLE = Path("/proc/self/exe").resolve()

RELAY = """
import socket, sys
sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
sock.connect(sys.argv[1])
sock.recv(1)
"""


@contextmanager
def running(executable: Path, *arguments: str) -> Iterator[Caller]:
    """A process of that executable (a copy of some interpreter), connected to us."""
    path = f"/tmp/vouchd-unix-{os.getpid()}-{next(NUMBERS)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen()
        child = subprocess.Popen([executable, *arguments, "-c", RELAY, path])
        try:
            sock, _ = listener.accept()
            with sock:
                caller = identify(sock)
                yield caller
                caller.close()
        finally:
            child.kill()
            child.wait()
            Path(path).unlink()


@pytest.fixture
async def attestor() -> AsyncIterator[UnixAttestor]:
    attestor = UnixAttestor(UnixOptions(), AttestorContext())
    yield attestor
    await attestor.close()


async def find(attestor: UnixAttestor, caller: Caller) -> Findings:
    with caller.open_proc() as view:
        return await attestor.attest(view)


def values(findings: Findings, key: str) -> set[str]:
    prefix = key + ":"
    return {
        selector.value.removeprefix(prefix)
        for selector in findings.selectors
        if selector.value.startswith(prefix)
    }


async def test_it_says_what_the_kernel_and_the_files_say(
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
    assert not found.notes


async def test_ids_without_a_name_have_no_name_selector(attestor: UnixAttestor, me: Caller) -> None:
    nameless = replace(
        me,
        credentials=replace(me.credentials, uid=4000000001, gid=4000000002, groups=(4000000003,)),
    )
    found = await find(attestor, nameless)
    assert values(found, "uid") == {"4000000001"}
    assert values(found, "supplementary_gid") == {"4000000003"}
    for key in ("user", "group", "supplementary_group"):
        assert values(found, key) == set()
    # A result with a note is not shared with other connections: the name may soon exist.
    assert "no name on this host: uid 4000000001, gid 4000000002, gid 4000000003" in found.notes


async def test_names_of_supplementary_groups(attestor: UnixAttestor, me: Caller) -> None:
    first = grp.getgrall()[0]
    member = replace(me, credentials=replace(me.credentials, groups=(first.gr_gid,)))
    assert values(await find(attestor, member), "supplementary_group") == {first.gr_name}


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """An interpreter of our own, which can be replaced while it runs."""
    copy = tmp_path / "program"
    shutil.copy(EXECUTABLE, copy)
    return copy


@pytest.fixture(autouse=True)
def _home_of_the_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHOME", sys.base_prefix)


async def test_a_replaced_executable_has_lost_its_path(
    attestor: UnixAttestor, program: Path
) -> None:
    with running(program) as caller:
        assert values(await find(attestor, caller), "path") == {str(program)}
        fresh = program.with_name("fresh")
        shutil.copy("/bin/true", fresh)
        fresh.rename(program)
        found = await find(attestor, caller)
    assert values(found, "path") == set()
    assert values(found, "sha256") == {hashlib.sha256(EXECUTABLE.read_bytes()).hexdigest()}
    assert "is not the running file" in found.notes[0]


async def test_a_deleted_executable_has_no_path_not_even_by_a_file_of_that_odd_name(
    attestor: UnixAttestor, program: Path
) -> None:
    with running(program) as caller:
        program.unlink()
        shutil.copy(EXECUTABLE, f"{program} (deleted)")
        found = await find(attestor, caller)
    assert values(found, "path") == set()


async def test_no_sha256_when_switched_off(me: Caller) -> None:
    attestor = UnixAttestor(UnixOptions(sha256=False), AttestorContext())
    found = await find(attestor, me)
    assert values(found, "path")
    assert values(found, "sha256") == set()
    assert not found.notes
    await attestor.close()


async def test_a_large_executable_has_no_sha256_and_says_so(me: Caller) -> None:
    attestor = UnixAttestor(UnixOptions(sha256_max_bytes=1000), AttestorContext())
    found = await find(attestor, me)
    assert values(found, "path")
    assert values(found, "sha256") == set()
    assert "over sha256_max_bytes (1000)" in found.notes[0]
    await attestor.close()


async def test_an_unreadable_executable_leaves_the_other_selectors(
    attestor: UnixAttestor, me: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_self: ProcessView, _name: str) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(ProcessView, "readlink", refuse)
    monkeypatch.setattr(ProcessView, "stat", refuse)
    found = await find(attestor, me)
    assert values(found, "uid")
    assert values(found, "path") == values(found, "sha256") == set()
    assert "CAP_SYS_PTRACE" in found.notes[0]


async def test_a_process_that_is_gone_is_a_failure(attestor: UnixAttestor, program: Path) -> None:
    with running(program) as caller, caller.open_proc() as view:
        os.kill(caller.credentials.pid, 9)
        os.waitid(os.P_PID, caller.credentials.pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(AttestorError, match="exited"):
            await attestor.attest(view)


class Digests:
    """Counts how often a file is really read, and can hold the reading up."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self.go = threading.Event()
        self.go.set()
        self._real = unix._digest
        monkeypatch.setattr(unix, "_digest", self._digest)

    def _digest(self, descriptor: int, expected: unix._FileKey) -> str:
        self.count += 1
        assert self.go.wait(10)
        return self._real(descriptor, expected)


@pytest.fixture
def digests(monkeypatch: pytest.MonkeyPatch) -> Digests:
    return Digests(monkeypatch)


async def test_an_old_file_is_read_once(
    attestor: UnixAttestor, me: Caller, digests: Digests
) -> None:
    for _ in range(3):
        await find(attestor, me)
    assert digests.count == 1


async def test_a_file_that_changed_just_now_is_read_each_time(
    attestor: UnixAttestor, program: Path, digests: Digests
) -> None:
    """Within one tick of the clock a file may change again without a trace."""
    with running(program) as caller:
        await find(attestor, caller)
        await find(attestor, caller)
    assert digests.count == 2


async def test_many_who_ask_at_once_are_answered_by_one_reading(
    attestor: UnixAttestor, me: Caller, digests: Digests
) -> None:
    digests.go.clear()
    async with asyncio.TaskGroup() as tasks:
        asking = [tasks.create_task(find(attestor, me)) for _ in range(20)]
        while not digests.count:
            await asyncio.sleep(0)
        digests.go.set()
    assert digests.count == 1
    assert len({frozenset(task.result().selectors) for task in asking}) == 1


async def test_one_who_gives_up_does_not_stop_the_reading(
    attestor: UnixAttestor, me: Caller, digests: Digests
) -> None:
    digests.go.clear()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await find(attestor, me)
    digests.go.set()
    assert values(await find(attestor, me), "sha256")
    assert digests.count == 1


async def test_one_user_cannot_keep_the_reading_to_itself(
    attestor: UnixAttestor, program: Path, digests: Digests, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four executables of one user may wait; a fifth is put off, and its other facts are told."""
    monkeypatch.setattr(unix, "DIGEST_SECONDS", 60.0)
    digests.go.clear()
    copies = [Path(shutil.copy(program, f"{program}-{n}")) for n in range(5)]
    async with AsyncExitStack() as stack:
        callers = [stack.enter_context(running(copy)) for copy in copies]
        stack.callback(digests.go.set)
        async with asyncio.TaskGroup() as tasks:
            asking = [tasks.create_task(find(attestor, caller)) for caller in callers[:4]]
            while attestor._digests._waiting.total() < 4:
                await asyncio.sleep(0)
            fifth = await find(attestor, callers[4])
            digests.go.set()
        assert all(values(task.result(), "sha256") for task in asking)
    assert values(fifth, "path") == {str(copies[4])}
    assert values(fifth, "sha256") == set()
    assert "4 other executables of this user are being read" in fifth.pending[0]
    assert not attestor._digests._waiting


async def test_while_an_executable_is_read_the_other_facts_are_told(
    attestor: UnixAttestor, me: Caller, digests: Digests, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unix, "DIGEST_SECONDS", 0.05)
    digests.go.clear()
    found = await find(attestor, me)
    digests.go.set()
    assert values(found, "uid")
    assert values(found, "path")
    assert found.pending == ("unix:sha256 took too long",)
    monkeypatch.undo()
    assert values(await find(attestor, me), "sha256"), "the reading went on meanwhile"


async def test_a_file_that_changes_while_it_is_read_is_a_failure(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"before")
    key = unix._FileKey.of(file.stat())
    file.write_bytes(b"and after")
    with pytest.raises(AttestorError, match="changed while it was read"):
        unix._digest(os.open(file, os.O_RDONLY), key)


def bind_over(program: Path, trusted: Path) -> list[str]:
    """What to run so that `program` runs under the name `trusted`, in a namespace of its own."""
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-rm", "true"], check=False).returncode:
        pytest.skip("user namespaces are not to be had here")
    script = f'mount --bind {program} {trusted} && exec {trusted} "$@"'
    return [unshare, "-rm", "sh", "-c", script, "sh"]


async def test_a_path_that_was_right_a_moment_ago_is_looked_at_again(
    attestor: UnixAttestor, program: Path
) -> None:
    """Device and inode alone may be those of another file by now; here it is the old one, moved."""
    with running(program) as caller:
        assert values(await find(attestor, caller), "path") == {str(program)}
    old = program.with_name("old")
    program.rename(old)
    shutil.copy("/bin/true", program)
    executable, *arguments = bind_over(old, program)
    with running(Path(executable), *arguments) as caller:
        found = await find(attestor, caller)
        assert Path(f"/proc/{caller.credentials.pid}/exe").readlink() == program
    assert values(found, "path") == set()


async def test_a_harmless_change_of_the_file_costs_no_path(
    attestor: UnixAttestor, program: Path
) -> None:
    with running(program) as caller:
        await find(attestor, caller)
        program.chmod(0o700)
        assert values(await find(attestor, caller), "path") == {str(program)}


async def test_a_path_is_not_taken_from_another_mount_namespace(
    attestor: UnixAttestor, program: Path
) -> None:
    """An ordinary user binds their program over a trusted path, in their own namespace."""
    trusted = program.with_name("trusted")
    shutil.copy("/bin/true", trusted)
    executable, *arguments = bind_over(program, trusted)
    with running(Path(executable), *arguments) as caller:
        found = await find(attestor, caller)
        assert Path(f"/proc/{caller.credentials.pid}/exe").readlink() == trusted
    assert Selector("unix", f"path:{trusted}") not in found.selectors
    assert "in another mount namespace" in found.notes[0]
