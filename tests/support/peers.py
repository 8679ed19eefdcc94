"""Sockets with a chosen peer: this process, a child, or altered socket options."""

from __future__ import annotations

import os
import signal
import socket
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from agent.kernel.caller import SO_PEERPIDFD, identify
from agent.kernel.credentials import SO_PEERGROUPS
from tests.support import pids

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from agent.kernel.caller import Caller


@contextmanager
def pair() -> Iterator[socket.socket]:
    """Yield a connected socket with this process as its peer."""
    near, far = socket.socketpair()
    with near, far:
        yield near


@contextmanager
def altered(**options: bytes | OSError) -> Iterator[socket.socket]:
    """Yield such a socket with chosen answers of getsockopt(2): `cred`, `pidfd` and `groups`."""
    names = {"cred": socket.SO_PEERCRED, "pidfd": SO_PEERPIDFD, "groups": SO_PEERGROUPS}
    with pair() as sock:
        yield _Altered(sock, {names[k]: v for k, v in options.items()})  # type: ignore[misc]


class _Altered:
    def __init__(self, sock: socket.socket, options: dict[int, bytes | OSError]) -> None:
        self._sock = sock
        self._options = options

    def getsockopt(self, level: int, option: int, size: int) -> bytes:
        answer = self._options.get(option)
        if isinstance(answer, OSError):
            raise answer
        return self._sock.getsockopt(level, option, size) if answer is None else answer


@contextmanager
def listening() -> Iterator[tuple[socket.socket, Path]]:
    """Yield a listening socket of mode 0666, and its path."""
    path = Path(f"/tmp/vouchd-test-{os.getpid()}")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        path.chmod(0o666)
        listener.listen()
        try:
            yield listener, path
        finally:
            path.unlink()


@contextmanager
def connected_child(
    behave: Callable[[socket.socket], object] = lambda _sock: signal.pause(),
) -> Iterator[tuple[int, socket.socket]]:
    """Fork a child that connects, then runs `behave`; yield its PID and the accepted socket."""

    def child(path: Path) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.connect(str(path))
            behave(sock)

    with listening() as (listener, path), pids.sleeping_child(lambda: child(path)) as pid:
        sock, _ = listener.accept()
        with sock:
            yield pid, sock


@contextmanager
def child_caller(
    behave: Callable[[socket.socket], object] = lambda _sock: signal.pause(),
) -> Iterator[tuple[int, Caller]]:
    """Fork a child that connects, then runs `behave`; yield its PID and its Caller."""
    with connected_child(behave) as (pid, sock):
        caller = identify(sock)
        try:
            yield pid, caller
        finally:
            caller.close()
