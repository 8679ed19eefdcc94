"""`vouchd who` prints the kernel's evidence of a connection, compared with /proc."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from agent.cli.output import to_json
from agent.cli.who import describe
from tests.support.agent import REPOSITORY, SAFETY_SECONDS
from tests.support.cli import command, vouchd
from tests.support.pids import become, fork, kill_and_reap, reap, sleeping_child

if TYPE_CHECKING:
    from collections.abc import Iterator

NOBODYS_UID, NOBODYS_GID = 54321, 54322
_PR_SET_NAME = 15


class Who:
    """The command in a process of its own, on a socket of its own."""

    def __init__(self, path: Path, *options: str) -> None:
        self.path = path
        self.process = subprocess.Popen(
            command("who", "--listen", path, *options),
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stderr is not None
        assert self.process.stderr.readline() == f"vouchd who ready on {path}\n"

    def connect(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(SAFETY_SECONDS)
        client.connect(str(self.path))
        return client

    def report(self) -> dict[str, Any]:
        """The next report on stdout."""
        assert self.process.stdout is not None
        report: dict[str, Any] = json.loads(self.process.stdout.readline())
        return report

    def end(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, str]:
        self.process.send_signal(number)
        _out, err = self.process.communicate(timeout=SAFETY_SECONDS)
        return self.process.returncode, err


@pytest.fixture
def socket_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Other users cannot enter pytest's directories.
    directory = tmp_path_factory.mktemp("w")
    for each in (directory, *directory.parents[:2]):
        each.chmod(0o755)
    return directory / "s"


@pytest.fixture
def who(socket_path: Path) -> Iterator[Who]:
    running = Who(socket_path, "--output", "json")
    yield running
    assert running.end() == (0, "")
    assert not socket_path.exists()


def read_all(client: socket.socket) -> str:
    with client, client.makefile() as file:
        return file.read()


def test_who_prints_the_evidence_of_the_connected_process(who: Who) -> None:
    answer = json.loads(read_all(who.connect()))
    program = Path("/proc/self/exe").stat()
    device = f"{os.major(program.st_dev)}:{os.minor(program.st_dev)}"
    assert answer["pid"] == os.getpid()
    assert (answer["uid"], answer["gid"]) == (os.geteuid(), os.getegid())
    assert answer["supplementary_gids"] == sorted(os.getgroups())
    assert answer["proof"] == "peerpidfd"
    assert answer["executable"] == str(Path("/proc/self/exe").readlink())
    assert answer["executable_file"] == f"device {device} inode {program.st_ino}"
    assert answer["command"] == Path("/proc/self/comm").read_text().strip()
    assert answer["cgroup"] == Path("/proc/self/cgroup").read_text().splitlines()
    tree = answer["display_only_read_by_pid"]["process_tree"]
    assert [line.split()[0] for line in tree[:2]] == [str(os.getpid()), str(os.getppid())]
    assert who.report() == answer


def test_the_pidfd_inode_names_the_process_and_not_the_connection(who: Who) -> None:
    inodes = {json.loads(read_all(who.connect()))["pidfd_inode"] for _ in range(3)}
    pidfd = os.pidfd_open(os.getpid())
    inodes.add(os.fstat(pidfd).st_ino)
    os.close(pidfd)
    assert len(inodes) == 1


def test_a_process_that_exited_before_accept_is_refused_with_the_reason(who: Who) -> None:
    who.process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, who.process.pid, os.WSTOPPED)
    reap(fork(who.connect))
    who.process.send_signal(signal.SIGCONT)
    assert who.report() == {"refused": "the process exited before its connection was accepted"}


def test_a_client_that_does_not_read_delays_no_other(who: Who) -> None:
    with who.connect(), who.connect():
        assert json.loads(read_all(who.connect()))["pid"] == os.getpid()


def test_a_client_that_sends_data_gets_its_answer(who: Who) -> None:
    client = who.connect()
    client.sendall(b"GET / HTTP/1.1\r\n\r\n")
    assert json.loads(read_all(client))["pid"] == os.getpid()


def test_the_name_of_a_process_cannot_control_the_terminal(socket_path: Path) -> None:
    running = Who(socket_path)

    def connect_under_a_bad_name() -> None:
        ctypes.CDLL(None).prctl(_PR_SET_NAME, b"\x1b[2Jevil\n", 0, 0, 0)
        read_all(running.connect())

    reap(fork(connect_under_a_bad_name))
    running.process.send_signal(signal.SIGTERM)
    out, _err = running.process.communicate(timeout=SAFETY_SECONDS)
    assert "\\x1b[2Jevil" in out
    assert "\x1b" not in out


def test_once_exits_after_one_connection(socket_path: Path) -> None:
    running = Who(socket_path, "--once", "--output", "json")
    read_all(running.connect())
    out, err = running.process.communicate(timeout=SAFETY_SECONDS)
    assert (running.process.returncode, err, out.count("\n")) == (0, "", 1)
    assert not socket_path.exists()


def test_a_socket_in_use_is_not_replaced(who: Who) -> None:
    outcome = vouchd("who", "--listen", who.path)
    assert (outcome.code, outcome.stdout) == (1, "")
    assert f"is serving on {who.path}; stop it first" in outcome.stderr
    assert json.loads(read_all(who.connect()))["pid"] == os.getpid()


@pytest.mark.system
def test_the_evidence_of_another_user_has_its_groups(who: Who) -> None:
    def behave() -> None:
        become(NOBODYS_UID, NOBODYS_GID, groups=(7, 8))
        client = who.connect()
        client.recv(1)
        signal.pause()

    with sleeping_child(behave) as pid:
        report = who.report()
    assert (report["pid"], report["uid"], report["gid"]) == (pid, NOBODYS_UID, NOBODYS_GID)
    assert report["supplementary_gids"] == [7, 8]
    assert (report["user"], report["group"]) == ("(no name)", "(no name)")
    assert report["executable"] == str(Path("/proc/self/exe").readlink())


def test_evidence_of_a_process_that_died_meanwhile_is_discarded(
    socket_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def behave() -> None:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(socket_path))
            signal.pause()

    def die(pid: int) -> list[str]:
        kill_and_reap(pid)
        return []

    monkeypatch.setattr("agent.kernel.inspect._tree", die)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(socket_path))
        listener.listen()
        child = fork(behave)
        with listener.accept()[0] as connection:
            report = describe(connection)
    assert report == {"refused": f"the process {child} exited while its facts were read"}


@pytest.mark.system
def test_without_root_unreadable_evidence_is_named(socket_path: Path) -> None:
    """An ordinary user runs the command, and may not read the executable of root."""
    read_end, write_end = os.pipe()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(socket_path))
        listener.listen()

        def behave() -> None:
            become(NOBODYS_UID)
            with listener.accept()[0] as connection:
                os.write(write_end, to_json(describe(connection)).encode())

        with socket.socket(socket.AF_UNIX) as client, os.fdopen(read_end) as output:
            client.connect(str(socket_path))
            child = fork(behave)
            os.close(write_end)
            report = json.loads(output.read())
            reap(child)
    assert (report["pid"], report["uid"]) == (os.getpid(), 0)
    assert report["executable"] == "not readable: Permission denied"
    assert report["cgroup"] == Path("/proc/self/cgroup").read_text().splitlines()
