"""A process in its own user namespace forges the credentials of the sender.

The kernel lets a process send another PID than its own (SCM_CREDENTIALS) if it has CAP_SYS_ADMIN
over its PID namespace. Every user gets this capability in a user and PID namespace of its own.
There the attacker connects, executes the trusted program, and leaves the connection to a child that
sends with the PID of that program. vouchd therefore believes nothing about the program of a process
in another user
namespace: only its uid counts.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import pids
from tests.support.agent import SAFETY_SECONDS
from tests.support.targets import (
    TRUSTED_ID,
    VICTIM,
    Target,
    connect,
    exec_trusted,
    fetch_ids,
    found_by,
)

CLONE_NEWUSER, CLONE_NEWPID = 0x10000000, 0x20000000
PR_SET_DUMPABLE = 4

pytestmark = pytest.mark.system


class Forger(socket.socket):
    """A socket that sends with the credentials of process 1 and user 0."""

    def sendall(self, data: bytes, *_flags: int) -> None:  # type: ignore[override]
        stamp = struct.pack("=iII", 1, 0, 0)
        while data:
            control = [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, stamp)]
            data = data[self.sendmsg([data], control) :]


def test_forged_sender(target: Target) -> None:
    def attacker(report: Callable[[list[str]], object]) -> None:
        pids.become(VICTIM)
        enter_own_namespaces()
        reports, reporting = os.pipe()
        if (pid := os.fork()) == 0:
            swap_and_forge(target, lambda ids: os.write(reporting, " ".join(ids).encode()))
        os.close(reporting)
        with os.fdopen(reports) as pipe:
            found = pipe.read()  # ends with the child of the child
        os.kill(pid, signal.SIGKILL)  # and its whole namespace
        report(found.split())  # last: the reader of this kills this process

    target.record_result(succeeded=TRUSTED_ID in found_by(attacker))
    target.require_log("caller attested", "no program selectors")


def enter_own_namespaces() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)
    if libc.unshare(CLONE_NEWUSER | CLONE_NEWPID):
        raise OSError(ctypes.get_errno(), "unshare")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {VICTIM} 1")
    Path("/proc/self/gid_map").write_text(f"0 {VICTIM} 1")


def swap_and_forge(target: Target, report: Callable[[list[str]], object]) -> None:
    """Run as process 1 of the new namespace."""
    sock = connect(target.socket)
    swapped, swap = os.pipe()
    if os.fork() == 0:
        os.close(swap)
        os.read(swapped, 1)  # ends when exec closes the other end
        forger = Forger(fileno=sock.detach())
        forger.settimeout(SAFETY_SECONDS)
        report(fetch_ids(forger))
        os._exit(0)
    exec_trusted(target)
