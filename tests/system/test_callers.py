"""Processes of several users against a running agent (as root: `make test-system`)."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.pb import workloadapi_pb2 as pb
from tests.support import pids, raw
from tests.support.agent import SAFETY_SECONDS, RunningAgent

pytestmark = pytest.mark.system

PR_SET_DUMPABLE = 4

ENTRIES = """
entries:
  - spiffe_id: /user/one
    selectors: [unix:uid:1001]
  - spiffe_id: /user/two
    selectors: [unix:uid:1002]
  - spiffe_id: /group/only
    selectors: [unix:supplementary_gid:7001]
  - spiffe_id: /program/python
    selectors: [unix:uid:1001, "unix:path:{python}"]
"""


def entries() -> str:
    return ENTRIES.format(python=Path("/proc/self/exe").resolve())


@pytest.fixture
def agent(agent_factory: Callable[..., RunningAgent]) -> RunningAgent:
    return agent_factory(entries(), config="log: {level: debug}")


def identities_of(agent: RunningAgent, become: Callable[[], None]) -> list[str] | int:
    """The SPIFFE IDs that a process of that user gets, or the status of its refusal."""
    read, write = os.pipe()

    def child() -> None:
        become()
        client = raw.connect(str(agent.socket))
        stream = client.call("FetchX509SVID", pb.X509SVIDRequest())
        try:
            response = pb.X509SVIDResponse.FromString(client.message(stream))
            result = " ".join(svid.spiffe_id for svid in response.svids)
        except AssertionError:
            result = str(client.calls[stream].status)
        os.write(write, result.encode())

    assert pids.reap(pids.fork(child)) == 0
    os.close(write)
    with os.fdopen(read) as pipe:
        result = pipe.read()
    return int(result) if result.isdecimal() else result.split()


def test_two_users_have_two_identities_on_one_socket(agent: RunningAgent) -> None:
    assert identities_of(agent, lambda: pids.become(1001)) == [
        "spiffe://example.org/user/one",
        "spiffe://example.org/program/python",
    ]
    assert identities_of(agent, lambda: pids.become(1002)) == ["spiffe://example.org/user/two"]


@pytest.mark.parametrize(
    ("capabilities", "identities"),
    [
        ("-all,+sys_ptrace", ["user/one", "program/python"]),
        ("-all", ["user/one"]),
    ],
)
def test_program_selectors_of_other_users_need_cap_sys_ptrace(
    agent_factory: Callable[..., RunningAgent], capabilities: str, identities: list[str]
) -> None:
    """Only its owner may read /proc/PID/environ without CAP_SYS_PTRACE (proc(5))."""
    rights = ("setpriv", f"--bounding-set={capabilities}", "--inh-caps=-all", "--no-new-privs")
    agent = agent_factory(entries(), prefix=rights)

    def become() -> None:
        pids.become(1001)
        # A program that this user started is dumpable; otherwise its /proc belongs to root.
        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)

    wanted = [f"spiffe://example.org/{each}" for each in identities]
    assert identities_of(agent, become) == wanted


def test_a_user_without_an_entry_gets_no_identity(agent: RunningAgent) -> None:
    assert identities_of(agent, lambda: pids.become(1003)) == raw.PERMISSION_DENIED
    assert "no registration entry matches" in agent.wait_for_log("call refused")


def test_user_nobody_is_an_ordinary_user_on_a_host(agent: RunningAgent) -> None:
    assert identities_of(agent, lambda: pids.become(65534)) == raw.PERMISSION_DENIED
    assert "no registration entry matches" in agent.wait_for_log("call refused")


def test_a_supplementary_group_at_connect_matches(agent: RunningAgent) -> None:
    assert identities_of(agent, lambda: pids.become(1003, groups=(7001,))) == [
        "spiffe://example.org/group/only"
    ]


def connect_then(agent: RunningAgent, before: Callable[[], None], after: Callable[[], None]) -> int:
    """The status of a process that changes itself between connect and call."""
    read, write = os.pipe()

    def child() -> None:
        before()
        client = raw.connect(str(agent.socket))
        after()
        call = client.status(client.call("FetchX509SVID", pb.X509SVIDRequest()))
        os.write(write, str(call.status).encode())

    assert pids.reap(pids.fork(child)) == 0
    os.close(write)
    with os.fdopen(read) as pipe:
        return int(pipe.read())


def test_a_process_that_changes_its_user_after_connect_gets_neither_identity(
    agent: RunningAgent,
) -> None:
    status = connect_then(agent, lambda: None, lambda: pids.become(1001))
    assert status == raw.PERMISSION_DENIED
    assert "changed its user or group after it connected" in agent.wait_for_log("call refused")


def test_a_process_that_drops_a_group_after_connect_is_refused(agent: RunningAgent) -> None:
    status = connect_then(agent, lambda: os.setgroups([7001]), lambda: os.setgroups([]))
    assert status == raw.PERMISSION_DENIED
    assert "changed its supplementary groups" in agent.wait_for_log("call refused")


def test_a_process_that_adds_a_group_after_connect_is_refused(agent: RunningAgent) -> None:
    status = connect_then(agent, lambda: os.setgroups([]), lambda: os.setgroups([7001]))
    assert status == raw.PERMISSION_DENIED
    assert "changed its supplementary groups" in agent.wait_for_log("call refused")


def become_another_user(_sock: socket.socket) -> None:
    os.seteuid(0)
    pids.become(1003)
    signal.pause()


def become_another_program(sock: socket.socket) -> None:
    os.set_inheritable(sock.fileno(), True)
    os.execv("/bin/sleep", ["sleep", "60"])  # noqa: S606


@pytest.mark.parametrize("change", [become_another_user, become_another_program])
def test_a_process_that_changes_loses_its_open_stream_without_a_push(
    agent_factory: Callable[..., RunningAgent], change: Callable[[socket.socket], None]
) -> None:
    program = entries().replace("unix:uid:1001, ", "unix:uid:1004, ")
    agent = agent_factory(program, config="reattest_interval: 1s")

    def child() -> None:
        os.setgroups([])
        os.setresgid(1004, 1004, 1004)
        os.setresuid(1004, 1004, 0)
        client = raw.connect(str(agent.socket))
        client.fetch_x509()
        change(client.sock)

    with pids.sleeping_child(child) as pid:
        line = agent.wait_for_log("call refused")
    assert "code=PERMISSION_DENIED" in line, line
    assert f"pid={pid}" in line


def test_the_callers_exit_ends_its_stream_while_another_process_holds_the_socket(
    agent: RunningAgent,
) -> None:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(SAFETY_SECONDS)
    read, write = os.pipe()

    def child() -> None:
        pids.become(1001)
        sock.connect(str(agent.socket))
        client = raw.RawClient(sock)
        client.start()
        client.fetch_x509()
        os.write(write, b"!")
        signal.pause()

    pid = pids.fork(child)
    os.read(read, 1)
    os.kill(pid, signal.SIGKILL)
    assert sock.recv(1) == b"", "the copied connection ends before the child is reaped"
    pids.kill_and_reap(pid)
    for descriptor in (read, write):
        os.close(descriptor)
    sock.close()


def test_a_process_with_a_reused_pid_gets_nothing_of_its_predecessor(agent: RunningAgent) -> None:
    """The caller connects and dies; a process with its PID continues on the connection."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(SAFETY_SECONDS)
    read, write = os.pipe()

    def victim() -> None:
        pids.become(1001)
        sock.connect(str(agent.socket))
        client = raw.RawClient(sock)
        client.start()
        client.fetch_x509()
        os.write(write, b"!")
        signal.pause()

    pid = pids.fork(victim)
    os.read(read, 1)
    pids.kill_and_reap(pid)

    def successor() -> None:
        pids.become(1003)
        client = raw.RawClient(sock)
        try:
            client.start()
            client.fetch_x509()
            os.write(write, b"stolen")
        except (OSError, raw.ConnectionEndedError):
            os.write(write, b"nothing")

    pids.fork_as(pid, successor)
    assert pids.reap(pid) == 0
    assert os.read(read, 10) == b"nothing"
    for descriptor in (read, write):
        os.close(descriptor)
    sock.close()


def test_a_process_with_a_pid_reused_before_accept_is_not_attested(agent: RunningAgent) -> None:
    """The agent is stopped while the caller connects, dies, and another process gets its PID."""
    os.kill(agent.pid, signal.SIGSTOP)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(SAFETY_SECONDS)

    def victim() -> None:
        pids.become(1002)
        sock.connect(str(agent.socket))

    pid = pids.fork(victim)
    assert pids.reap(pid) == 0

    def successor() -> None:
        pids.become(1001)
        signal.pause()

    pids.fork_as(pid, successor)
    try:
        client = raw.RawClient(sock)
        client.start()
        client.call("FetchX509SVID", pb.X509SVIDRequest())
        os.kill(agent.pid, signal.SIGCONT)
        with pytest.raises((raw.ConnectionEndedError, OSError)):
            client.read()
    finally:
        pids.kill_and_reap(pid)
        sock.close()
    assert "exited before its connection was accepted" in agent.wait_for_log("connection refused")
    assert "caller attested" not in agent.log, "no process was attested, so none was read"
