"""The caller is stopped between connect and request, and its descriptor taken.

The trusted program itself has connected. The attacker, who runs as the same user and started it,
stops it (SIGSTOP), takes a copy of its connected socket out of it (pidfd_getfd, allowed to whom
ptrace is) and makes the call. The connection was made by the trusted program, which is alive and
unchanged. Only the sender of the bytes is another.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
from collections.abc import Callable

import pytest

from tests.support import pids
from tests.support.agent import PATIENCE_SECONDS
from tests.support.targets import (
    TRUSTED_ID,
    VICTIM,
    Target,
    found_by,
    others_are_served,
    speak,
)

PIDFD_GETFD = 438
# Netcat's first descriptor beside the three of everybody.
ITS_SOCKET = 3

pytestmark = pytest.mark.system


def test_stopped_caller(target: Target) -> None:
    def attacker(tell: Callable[[list[str]], object]) -> None:
        pids.become(VICTIM)
        with subprocess.Popen(
            [target.trusted, "-U", target.socket], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as trusted:
            _until_it_has_connected(trusted)
            trusted.send_signal(signal.SIGSTOP)
            os.waitpid(trusted.pid, os.WUNTRACED)
            with socket.socket(fileno=_taken_from(trusted.pid)) as sock:
                sock.settimeout(PATIENCE_SECONDS)
                tell(_speak_after(sock, trusted))
            trusted.kill()

    target.judge(succeeded=TRUSTED_ID in found_by(attacker))
    target.says("connection refused", "bytes of another process")


def test_nobody_waits_for_a_stopped_caller(start: Callable[[str], Target]) -> None:
    target = start("vouchd")
    with subprocess.Popen(
        [target.trusted, "-U", target.socket], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as trusted:
        _until_it_has_connected(trusted)
        trusted.send_signal(signal.SIGSTOP)
        assert others_are_served(target)
        trusted.kill()


def _until_it_has_connected(program: subprocess.Popen[bytes]) -> None:
    """It copies the first bytes that the server sends, and nothing is connected before."""
    assert program.stdout is not None
    os.read(program.stdout.fileno(), 9)


def _taken_from(pid: int) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    pidfd = os.pidfd_open(pid)
    taken: int = libc.syscall(PIDFD_GETFD, pidfd, ITS_SOCKET, 0)
    os.close(pidfd)
    if taken < 0:
        raise OSError(ctypes.get_errno(), "pidfd_getfd")
    return taken


def _speak_after(sock: socket.socket, _program: subprocess.Popen[bytes]) -> list[str]:
    """The server's settings went to the program, which is nothing that the answer depends on."""
    return speak(sock)
