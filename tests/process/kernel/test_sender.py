"""The kernel's credentials on each chunk, with real processes."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from agent.errors import PeerGoneError
from agent.kernel.caller import Caller, identify
from agent.kernel.sender import ForeignSenderError, receive, stamp_senders
from tests.support import pids


@contextmanager
def connection(*, stamped: bool = True) -> Iterator[tuple[socket.socket, socket.socket, Caller]]:
    """A connection of this process to itself: the client's end, the agent's end, the caller."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind("")
        if stamped:
            stamp_senders(listener)
        listener.listen()
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        client.connect(listener.getsockname())
        server, _ = listener.accept()
    caller = identify(server)
    with client, server:
        yield client, server, caller
    caller.close()


def from_child(send: Callable[[], object]) -> int:
    pid = pids.fork(send)
    assert pids.reap(pid) == 0
    return pid


def test_bytes_of_the_caller_pass() -> None:
    with connection() as (client, server, caller):
        client.sendall(b"mine")
        assert receive(server, 100, caller) == b"mine"
        client.shutdown(socket.SHUT_WR)
        assert receive(server, 100, caller) == b""


def test_bytes_of_a_child_that_inherited_the_socket_are_refused() -> None:
    with connection() as (client, server, caller):
        child = from_child(lambda: client.sendall(b"its"))
        with pytest.raises(ForeignSenderError) as refused:
            receive(server, 100, caller)
    assert (refused.value.pid, refused.value.uid, refused.value.gid, refused.value.count) == (
        child,
        os.getuid(),
        os.getgid(),
        3,
    )


def test_chunks_of_two_senders_never_come_as_one() -> None:
    with connection() as (client, server, caller):
        client.sendall(b"mine")
        from_child(lambda: client.sendall(b"its"))
        client.sendall(b"mine again")
        assert receive(server, 100, caller) == b"mine"
        with pytest.raises(ForeignSenderError):
            receive(server, 100, caller)


def test_bytes_of_a_caller_that_exited_before_the_read_are_refused() -> None:
    """Its PID could belong to another process when these bytes are read."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind("")
        stamp_senders(listener)
        listener.listen()

        def child() -> None:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.connect(listener.getsockname())
            sock.sendall(b"x")
            signal.pause()

        with pids.sleeping_child(child) as pid:
            server, _ = listener.accept()
            caller = identify(server)
            server.recv(1, socket.MSG_PEEK)
            pids.kill_and_reap(pid)
            with server, pytest.raises(PeerGoneError):
                receive(server, 100, caller)
            caller.close()


def test_bytes_without_credentials_are_refused() -> None:
    with connection(stamped=False) as (client, server, caller):
        client.sendall(b"x")
        with pytest.raises(ForeignSenderError) as refused:
            receive(server, 100, caller)
    assert refused.value.pid == 0


def test_passed_descriptors_are_not_kept() -> None:
    with connection() as (client, server, caller):
        before = os.listdir("/proc/self/fd")
        for count in (1, 250):
            socket.send_fds(client, [b"x"], [0] * count)
            assert receive(server, 100, caller) == b"x"
        assert os.listdir("/proc/self/fd") == before
