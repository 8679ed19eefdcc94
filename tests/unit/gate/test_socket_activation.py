"""Sockets that the service manager passes: taken by name, or refused with advice."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from agent.errors import StartupError
from agent.gate.socket_activation import ActivatedListener, take_sockets
from agent.kernel.sender import stamp_senders

# In the tests' own process the numbers from 3 are in use.
FIRST = 500


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
    """Pass these sockets, where only `path` is configured."""
    for number, sock in enumerate(passed):
        with sock:
            os.dup2(sock.fileno(), FIRST + number)
    wanted = {"agent": path, "admin": None}
    return take_sockets(environment(len(passed), names), wanted, held, FIRST)


def test_a_passed_socket_is_taken_by_name_and_its_file_stays(
    held: ExitStack, tmp_path: Path
) -> None:
    path = tmp_path / "s"
    found = take(held, path, listening(path))["agent"]
    assert (found.socket.fileno(), found.socket.getblocking()) == (FIRST, False)
    assert not found.socket.get_inheritable()
    found.close()
    assert path.exists()


def test_the_variables_are_removed_for_children(held: ExitStack) -> None:
    others = environment(0, "") | {"PATH": "/bin"}
    assert take_sockets(others, {}, held) == {}
    assert others == {"PATH": "/bin"}


def test_sockets_for_another_process_are_not_taken(held: ExitStack) -> None:
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
def test_an_unusable_socket_is_refused_with_advice(
    held: ExitStack,
    tmp_path: Path,
    make: Callable[[Path], socket.socket],
    names: str,
    reason: str,
) -> None:
    with pytest.raises(StartupError, match=reason):
        take(held, tmp_path / "s", make(tmp_path / "s"), names=names)


def test_two_sockets_with_one_name_are_refused(held: ExitStack, tmp_path: Path) -> None:
    path, other = tmp_path / "s", tmp_path / "t"
    with pytest.raises(StartupError, match="one each of agent, admin"):
        take(held, path, listening(path), listening(other), names="agent:agent")


def test_a_descriptor_that_is_no_socket_is_refused(held: ExitStack) -> None:
    with Path("/dev/null").open("rb") as file:
        os.dup2(file.fileno(), FIRST)
    try:
        with pytest.raises(StartupError, match="descriptor 500 is no socket"):
            take_sockets(environment(1, "agent"), {"agent": Path("/s")}, held, FIRST)
    finally:
        os.close(FIRST)
