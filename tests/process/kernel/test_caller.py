"""Naming callers that exit before, while or after they are named."""

from __future__ import annotations

import errno
import os
import signal
import socket
import struct
from pathlib import Path

import pytest

from agent.errors import PeerGoneError
from agent.kernel.caller import identify
from tests.support import pids
from tests.support.peers import altered, connected_child, listening


def test_a_free_pid_gives_no_weaker_proof() -> None:
    pid = pids.fork(lambda: None)
    pids.reap(pid)
    raw = struct.pack("=iII", pid, os.geteuid(), os.getegid())
    missing = OSError(errno.ENOPROTOOPT, "no")
    with altered(cred=raw, pidfd=missing) as sock, pytest.raises(PeerGoneError):
        identify(sock)


def test_a_process_that_exited_before_accept_is_gone() -> None:
    with listening() as (listener, path):

        def child() -> None:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.connect(str(path))

        pids.reap(pids.fork(child))
        sock, _ = listener.accept()
        with sock, pytest.raises(PeerGoneError):
            identify(sock)


def test_a_zombie_is_dead() -> None:
    with connected_child() as (pid, sock):
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
