"""What the kernel says of a peer, on real sockets and processes; old kernels by their errors."""

from __future__ import annotations

import errno
import os
import signal
import socket
import struct
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from agent.errors import AttestationError, PeerError, PeerGoneError
from agent.kernel import caller as caller_module
from agent.kernel import credentials as credentials_module
from agent.kernel.caller import Proof, identify
from agent.kernel.process import ProcessHandle
from tests.support import pids


class Peer:
    """A socket whose options the test sets; everything else is real."""

    def __init__(self, sock: socket.socket, options: dict[int, bytes | OSError]) -> None:
        self._sock = sock
        self._options = options

    def getsockopt(self, level: int, option: int, size: int) -> bytes:
        answer = self._options.get(option)
        if isinstance(answer, OSError):
            raise answer
        return self._sock.getsockopt(level, option, size) if answer is None else answer


@contextmanager
def pair() -> Iterator[socket.socket]:
    near, far = socket.socketpair()
    with near, far:
        yield near


@contextmanager
def altered(**options: bytes | OSError) -> Iterator[socket.socket]:
    names = {
        "cred": socket.SO_PEERCRED,
        "pidfd": caller_module.SO_PEERPIDFD,
        "groups": credentials_module.SO_PEERGROUPS,
    }
    with pair() as sock:
        yield Peer(sock, {names[k]: v for k, v in options.items()})  # type: ignore[misc]


def credentials(pid: int, uid: int, gid: int) -> bytes:
    return struct.pack("=iII", pid, uid, gid)


def test_it_tells_who_we_are() -> None:
    with pair() as sock:
        caller = identify(sock)
    assert caller.credentials.pid == os.getpid()
    assert caller.credentials.uid == os.geteuid()
    assert caller.credentials.gid == os.getegid()
    assert set(caller.credentials.groups) == set(os.getgroups())
    assert caller.proof is Proof.PEERPIDFD
    caller.close()


def test_more_groups_than_python_asks_for() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to take on groups")
    groups = list(range(5000, 5600))

    def child(path: Path) -> None:
        os.setgroups(groups)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.connect(str(path))
            sock.recv(1)

    with listening() as (listener, path), pids.sleeping_child(lambda: child(path)):
        sock, _ = listener.accept()
        with sock:
            assert credentials_module.read_credentials(sock).groups == tuple(groups)


@contextmanager
def listening() -> Iterator[tuple[socket.socket, Path]]:
    path = Path(f"/tmp/vouchd-test-{os.getpid()}")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        path.chmod(0o666)
        listener.listen()
        try:
            yield listener, path
        finally:
            path.unlink()


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (credentials(0, 0, 0), "PID namespace"),
        (credentials(0, 0xFFFFFFFF, 0xFFFFFFFF), "PID namespace"),
        (credentials(1, 0xFFFFFFFF, 0), "not mapped"),
        (credentials(1, 0, 0xFFFFFFFF), "not mapped"),
    ],
)
def test_who_cannot_be_named_is_refused(raw: bytes, reason: str) -> None:
    with altered(cred=raw) as sock, pytest.raises(PeerError, match=reason):
        identify(sock)


@pytest.mark.parametrize("raw", [credentials(1, 65534, 0), credentials(1, 0, 65534)])
def test_the_overflow_ids_are_refused_where_some_ids_are_not_mapped(
    raw: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        credentials_module, "overflow_ids", lambda: credentials_module.OverflowIds(65534, 65534)
    )
    with altered(cred=raw) as sock, pytest.raises(PeerError, match="not mapped"):
        identify(sock)


def test_groups_that_are_not_mapped_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        credentials_module, "overflow_ids", lambda: credentials_module.OverflowIds(65534, 65534)
    )
    with altered(groups=struct.pack("=III", 4, 65534, 27)) as sock:
        assert credentials_module.read_credentials(sock).groups == (4, 27)


@pytest.mark.parametrize(
    ("mapping", "expected"),
    [
        ("         0          0 4294967295\n", -1),
        ("         0     100000      65536\n", 65533),
        ("         0       1000          1\n         1     100000 65536\n", 65533),
    ],
)
def test_nobody_is_somebody_only_where_every_id_is_mapped(
    tmp_path: Path, mapping: str, expected: int
) -> None:
    (tmp_path / "self").mkdir()
    (tmp_path / "sys/kernel").mkdir(parents=True)
    for kind in ("uid", "gid"):
        (tmp_path / f"self/{kind}_map").write_text(mapping)
        (tmp_path / f"sys/kernel/overflow{kind}").write_text("65533\n")
    assert credentials_module.overflow_ids(tmp_path) == credentials_module.OverflowIds(
        expected, expected
    )


def test_without_the_socket_option_the_weaker_proof_is_named() -> None:
    with altered(pidfd=OSError(errno.ENOPROTOOPT, "no")) as sock:
        caller = identify(sock)
    assert caller.proof is Proof.PIDFD_OPEN
    assert caller.process.is_alive()
    caller.close()


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENODATA, errno.ESRCH])
def test_any_other_error_of_the_option_means_that_the_peer_is_gone(code: int) -> None:
    with altered(pidfd=OSError(code, "no")) as sock, pytest.raises(PeerGoneError):
        identify(sock)


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_a_shortage_of_our_own_says_nothing_of_the_peer(code: int) -> None:
    with altered(pidfd=OSError(code, "short")) as sock, pytest.raises(OSError, match="short"):
        identify(sock)


def test_the_weaker_proof_of_a_free_pid_is_none() -> None:
    pid = pids.fork(lambda: None)
    pids.reap(pid)
    raw = credentials(pid, os.geteuid(), os.getegid())
    missing = OSError(errno.ENOPROTOOPT, "no")
    with altered(cred=raw, pidfd=missing) as sock, pytest.raises(PeerGoneError):
        identify(sock)


def test_groups_that_cannot_be_read_are_an_error_not_an_empty_list() -> None:
    with altered(groups=OSError(errno.EIO, "broken")) as sock, pytest.raises(OSError, match="brok"):
        identify(sock)


def connected_child(path: Path) -> int:
    """A child that connects and then waits."""

    def child() -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.connect(str(path))
            signal.pause()

    return pids.fork(child)


def test_one_who_exited_before_accept_is_gone() -> None:
    with listening() as (listener, path):

        def child() -> None:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.connect(str(path))

        pids.reap(pids.fork(child))
        sock, _ = listener.accept()
        with sock, pytest.raises(PeerGoneError):
            identify(sock)


def test_a_zombie_is_dead() -> None:
    with listening() as (listener, path):
        pid = connected_child(path)
        sock, _ = listener.accept()
        with sock:
            caller = identify(sock)
            assert caller.process.is_alive()
            os.kill(pid, signal.SIGKILL)
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
            assert Path(f"/proc/{pid}/stat").exists(), "it is still a zombie"
            assert not caller.process.is_alive()
            with pytest.raises(PeerGoneError):
                caller.open_proc()
            with pytest.raises(PeerGoneError):
                identify(sock)
        caller.close()
        pids.kill_and_reap(pid)


def test_a_closed_handle_is_a_dead_process() -> None:
    with pair() as sock:
        caller = identify(sock)
    caller.close()
    caller.close()
    assert not caller.process.is_alive()
    with pytest.raises(PeerError):
        caller.process.fileno()
    with pytest.raises(PeerGoneError):
        caller.open_proc()


def test_reads_are_of_the_process_itself() -> None:
    with pair() as sock:
        caller = identify(sock)
    with caller.open_proc() as view:
        assert view.read("comm").decode().strip() == Path("/proc/self/comm").read_text().strip()
        assert view.readlink("exe") == str(Path("/proc/self/exe").readlink())
        assert view.stat("exe").st_ino == Path("/proc/self/exe").stat().st_ino
        assert view.pidfd == caller.process.fileno()
        assert (view.pid, view.uid, view.gid) == (os.getpid(), os.geteuid(), os.getegid())
        assert len(view.read("status", 10)) == 10
    caller.close()


def test_a_closed_view_reads_nothing() -> None:
    with pair() as sock:
        caller = identify(sock)
    view = caller.open_proc()
    view.close()
    view.close()
    for read in (view.read, view.readlink, view.stat, view.open):
        with pytest.raises(PeerError):
            read("status")
    caller.close()


def test_reads_fail_once_the_process_is_gone() -> None:
    with listening() as (listener, path):
        pid = connected_child(path)
        sock, _ = listener.accept()
        with sock:
            caller = identify(sock)
        with caller.open_proc() as view:
            assert view.read("status")
            pids.kill_and_reap(pid)
            with pytest.raises(ProcessLookupError):
                view.read("status")
        caller.close()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (FileNotFoundError(), PeerGoneError),
        (OSError(errno.EMFILE, "Too many open files"), AttestationError),
    ],
)
def test_a_directory_that_cannot_be_opened(
    monkeypatch: pytest.MonkeyPatch, error: OSError, expected: type[Exception]
) -> None:
    with pair() as sock:
        caller = identify(sock)

    def refuse(*_args: object, **_options: object) -> int:
        raise error

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(expected):
        caller.open_proc()
    monkeypatch.undo()
    caller.close()


def test_a_process_that_dies_while_its_directory_is_opened(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The directory may be a successor's already: it is closed unread."""
    with pair() as sock:
        caller = identify(sock)
    answers = iter([True, False])
    monkeypatch.setattr(ProcessHandle, "is_alive", lambda _self: next(answers))
    with pytest.raises(PeerGoneError):
        caller.open_proc()
    caller.close()


def test_a_long_file_is_read_to_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caller_module, "_USUAL_BYTES", 16)
    near, far = socket.socketpair()
    with near, far, closing(identify(near)) as caller, caller.open_proc() as view:
        whole = Path("/proc/self/status").read_bytes()
        assert view.read("status").splitlines()[:3] == whole.splitlines()[:3]
        assert len(view.read("status")) > 100
        assert view.read("status", 20) == whole[:20]
        assert view.read("status", 10) == whole[:10]
