"""Sockets that are passed at start: which are taken, and which are refused with the way out."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from agent.errors import StartupError
from agent.gate import socket_activation
from agent.gate.socket_activation import ActivatedListener, take_sockets
from agent.kernel.sender import stamp_senders
from tests.support.activated import ActivatedAgent
from tests.support.agent import entry_for_me

FIRST = 500


@pytest.fixture(autouse=True)
def first(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the tests' own process the numbers from 3 on are taken."""
    monkeypatch.setattr(socket_activation, "_FIRST", FIRST)


@pytest.fixture
def held() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def listening(path: Path | str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.bind(str(path))
    stamp_senders(sock)
    sock.listen()
    return sock


def environment(count: int, names: str, pid: int | None = None) -> dict[str, str]:
    return {
        "LISTEN_PID": str(os.getpid() if pid is None else pid),
        "LISTEN_FDS": str(count),
        "LISTEN_FDNAMES": names,
    }


def take(
    held: ExitStack, path: Path, *passed: socket.socket, names: str = "agent"
) -> dict[str, ActivatedListener]:
    """What comes of passing these, where only `path` is wanted."""
    for number, sock in enumerate(passed):
        with sock:
            os.dup2(sock.fileno(), FIRST + number)
    wanted = {"agent": path, "admin": None}
    return take_sockets(environment(len(passed), names), wanted, held)


def test_the_socket_is_taken_by_its_name_and_its_file_stays(
    held: ExitStack, tmp_path: Path
) -> None:
    path = tmp_path / "s"
    found = take(held, path, listening(path))["agent"]
    assert (found.socket.fileno(), found.socket.getblocking()) == (FIRST, False)
    assert not found.socket.get_inheritable()
    found.close()
    assert path.exists()


def test_the_variables_are_not_handed_on(held: ExitStack) -> None:
    others = environment(0, "") | {"PATH": "/bin"}
    assert take_sockets(others, {}, held) == {}
    assert others == {"PATH": "/bin"}


def test_what_was_passed_to_another_process_is_not_touched(held: ExitStack) -> None:
    assert take_sockets(environment(1, "agent", pid=1), {}, held) == {}
    assert take_sockets({}, {}, held) == {}


def unstamped(path: Path) -> socket.socket:
    sock = listening(path)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 0)
    return sock


def not_listening(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.bind(str(path))
    return sock


def datagrams(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.bind(str(path))
    return sock


@pytest.mark.parametrize(
    ("make", "names", "reason"),
    [
        (unstamped, "agent", "add PassCredentials=yes to the .Socket. section"),
        (not_listening, "agent", "no listening Unix stream socket"),
        (datagrams, "agent", "no listening Unix stream socket"),
        (lambda _: socket.create_server(("127.0.0.1", 0)), "agent", "no listening Unix stream"),
        (lambda path: listening(f"{path}.other"), "agent", "is bound to .*other.* make ListenStr"),
        (lambda path: listening(f"\0{path}"), "agent", "is bound to"),
        (listening, "vouchd.socket", "set FileDescriptorName= in the socket unit"),
        (listening, "admin", "set admin_socket_path, or disable the socket unit"),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_way_out(
    held: ExitStack,
    tmp_path: Path,
    make: Callable[[Path], socket.socket],
    names: str,
    reason: str,
) -> None:
    with pytest.raises(StartupError, match=reason):
        take(held, tmp_path / "s", make(tmp_path / "s"), names=names)


def test_two_of_one_name_are_refused(held: ExitStack, tmp_path: Path) -> None:
    path, other = tmp_path / "s", tmp_path / "t"
    with pytest.raises(StartupError, match="one each of agent, admin"):
        take(held, path, listening(path), listening(other), names="agent:agent")


def test_what_is_no_socket_is_refused(held: ExitStack) -> None:
    with Path("/dev/null").open("rb") as file:
        os.dup2(file.fileno(), FIRST)
    try:
        with pytest.raises(StartupError, match="500 that was passed is no socket"):
            take_sockets(environment(1, "agent"), {"agent": Path("/s")}, held)
    finally:
        os.close(FIRST)


def test_an_agent_serves_who_connected_before_it_was_there() -> None:
    agent = ActivatedAgent(entry_for_me())
    assert agent.stop() == 0
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as early:
        early.connect(str(agent.socket))
        early.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
        agent.start()
        early.settimeout(30)
        assert early.recv(9)[3:4] == b"\x04", "the server's SETTINGS"
    agent.close()
