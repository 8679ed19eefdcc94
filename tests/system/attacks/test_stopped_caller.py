"""The attacker stops the caller between connect and request, and takes its descriptor.

The trusted program itself has connected. The attacker runs as the same user and started it. It
stops the program (SIGSTOP), takes a copy of its connected socket (pidfd_getfd, which needs the
right to ptrace), and makes the call. The process that connected is alive and unchanged. Only the
sender of the bytes is another.
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
from tests.support.agent import SAFETY_SECONDS
from tests.support.targets import (
    TRUSTED_ID,
    VICTIM,
    Target,
    fetch_ids,
    found_by,
    others_are_served,
)

PIDFD_GETFD = 438
# The first descriptor of netcat after the three standard ones.
ITS_SOCKET = 3

pytestmark = pytest.mark.system


def test_stopped_caller(target: Target) -> None:
    def attacker(report: Callable[[list[str]], object]) -> None:
        pids.become(VICTIM)
        with subprocess.Popen(
            [target.trusted, "-U", target.socket], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as trusted:
            _until_it_has_connected(trusted)
            trusted.send_signal(signal.SIGSTOP)
            os.waitpid(trusted.pid, os.WUNTRACED)
            with socket.socket(fileno=_taken_from(trusted.pid)) as sock:
                sock.settimeout(SAFETY_SECONDS)
                # The trusted program got the server's SETTINGS; the response needs none.
                report(fetch_ids(sock))
            trusted.kill()

    target.record_result(succeeded=TRUSTED_ID in found_by(attacker))
    target.require_log("connection refused", "bytes of another process")


def test_a_stopped_caller_delays_no_other_caller(start: Callable[[str], Target]) -> None:
    target = start("vouchd")
    with subprocess.Popen(
        [target.trusted, "-U", target.socket], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as trusted:
        _until_it_has_connected(trusted)
        trusted.send_signal(signal.SIGSTOP)
        assert others_are_served(target)
        trusted.kill()


def _until_it_has_connected(program: subprocess.Popen[bytes]) -> None:
    """Wait for the first bytes of the server, which the program copies after its connect."""
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
