"""Programs that are replaced, moved, or bound over another path while they run."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest

from agent.kernel.caller import Caller, identify
from attestors.api import AttestorContext, AttestorError, Selector
from attestors.unix import UnixAttestor, UnixOptions
from tests.support.unix import CountedDigests, find, values

NUMBERS = count()
EXECUTABLE = Path("/proc/self/exe").resolve()

CONNECT = """
import socket, sys
sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
sock.connect(sys.argv[1])
sock.recv(1)
"""


@contextmanager
def running(executable: Path, *arguments: str) -> Iterator[Caller]:
    """A process of that executable (a copy of an interpreter) that has connected."""
    path = f"/tmp/vouchd-unix-{os.getpid()}-{next(NUMBERS)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen()
        child = subprocess.Popen([executable, *arguments, "-c", CONNECT, path])
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


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A copy of the interpreter, which a test can replace while it runs."""
    copy = tmp_path / "program"
    shutil.copy(EXECUTABLE, copy)
    return copy


@pytest.fixture(autouse=True)
def _home_of_the_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHOME", sys.base_prefix)


async def test_replaced_executable_loses_its_path(attestor: UnixAttestor, program: Path) -> None:
    with running(program) as caller:
        assert values(await find(attestor, caller), "path") == {str(program)}
        fresh = program.with_name("fresh")
        shutil.copy("/bin/true", fresh)
        fresh.rename(program)
        found = await find(attestor, caller)
    assert values(found, "path") == set()
    assert values(found, "sha256") == {hashlib.sha256(EXECUTABLE.read_bytes()).hexdigest()}
    assert "is not the running file" in found.notes[0]


async def test_deleted_executable_has_no_path_even_if_a_file_has_its_odd_name(
    attestor: UnixAttestor, program: Path
) -> None:
    with running(program) as caller:
        program.unlink()
        shutil.copy(EXECUTABLE, f"{program} (deleted)")
        found = await find(attestor, caller)
    assert values(found, "path") == set()


async def test_changed_mode_of_the_executable_costs_no_path(
    attestor: UnixAttestor, program: Path
) -> None:
    with running(program) as caller:
        await find(attestor, caller)
        program.chmod(0o700)
        assert values(await find(attestor, caller), "path") == {str(program)}


async def test_zombie_is_a_failure(attestor: UnixAttestor, program: Path) -> None:
    with running(program) as caller, caller.open_proc() as view:
        os.kill(caller.credentials.pid, 9)
        os.waitid(os.P_PID, caller.credentials.pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(AttestorError, match="exited"):
            await attestor.attest(view)


async def test_executable_that_has_just_changed_is_read_each_time(program: Path) -> None:
    """Within one tick of the clock a file can change again with the same ctime."""
    async with CountedDigests() as counted:
        with running(program) as caller:
            await find(counted.attestor, caller)
            await find(counted.attestor, caller)
        assert counted.count == 2


def bind_over(program: Path, trusted: Path) -> list[str]:
    """The command that runs `program` as `trusted`, in a mount namespace of its own."""
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-rm", "true"], check=False).returncode:
        pytest.skip("this host allows no user namespaces")
    script = f'mount --bind {program} {trusted} && exec {trusted} "$@"'
    return [unshare, "-rm", "sh", "-c", script, "sh"]


async def test_cached_path_is_looked_up_again_if_it_differs(
    attestor: UnixAttestor, program: Path
) -> None:
    """The cached device and inode are those of the old file, which runs under a forged path."""
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


async def test_path_of_another_mount_namespace_is_not_reported(
    attestor: UnixAttestor, program: Path
) -> None:
    """Any user can bind a program over a trusted path, in a mount namespace of its own."""
    trusted = program.with_name("trusted")
    shutil.copy("/bin/true", trusted)
    executable, *arguments = bind_over(program, trusted)
    with running(Path(executable), *arguments) as caller:
        found = await find(attestor, caller)
        assert Path(f"/proc/{caller.credentials.pid}/exe").readlink() == trusted
    assert Selector("unix", f"path:{trusted}") not in found.selectors
    assert "in another mount namespace" in found.notes[0]


def nested(directory: Path) -> int:
    """Create nested directories until the path is over 4,095 bytes; a descriptor of the last."""
    descriptor = os.open(directory, os.O_PATH)
    for _ in range(22):
        os.mkdir("d" * 200, dir_fd=descriptor)
        below = os.open("d" * 200, os.O_PATH, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = below
    return descriptor


async def test_executable_with_a_path_over_4095_bytes_keeps_its_user(
    attestor: UnixAttestor, program: Path, tmp_path: Path
) -> None:
    last = nested(tmp_path)
    os.rename(program, "program", dst_dir_fd=last)
    with running(Path(f"/proc/{os.getpid()}/fd/{last}/program")) as caller:
        found = await find(attestor, caller)
    os.close(last)
    assert values(found, "uid") == {str(os.getuid())}
    assert values(found, "path") == set()
    assert any("File name too long" in note for note in found.notes)
    assert not found.pending
