"""Child processes with a chosen PID, user and behaviour."""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_LAST_PID = Path("/proc/sys/kernel/ns_last_pid")
_ATTEMPTS = 2000


def fork(behave: Callable[[], object]) -> int:
    """Fork a child that runs `behave` and exits without the parent's clean-up."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        behave()
        code = 0
    finally:
        os._exit(code)


def become(uid: int, gid: int | None = None, groups: tuple[int, ...] = ()) -> None:
    """Change this (child) process to another user, permanently."""
    os.setgroups(groups)
    os.setresgid(*(3 * [uid if gid is None else gid]))
    os.setresuid(*(3 * [uid]))


def reap(pid: int) -> int:
    """Wait for a child, and return its exit code."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def kill_and_reap(pid: int) -> None:
    """Kill a child, and reap it."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    with suppress(ChildProcessError):
        os.waitpid(pid, 0)


def fork_as(pid: int, behave: Callable[[], object]) -> None:
    """Fork a child with exactly this PID, which must be free (needs root).

    Other processes fork too, so it may take some attempts.
    """
    for _ in range(_ATTEMPTS):
        _LAST_PID.write_text(str(pid - 1))
        child = os.fork()
        if child == 0:
            _run_if_chosen(pid, behave)
        if child == pid:
            return
        os.waitpid(child, 0)
    raise AssertionError(f"PID {pid} was not free in {_ATTEMPTS} attempts")


def _run_if_chosen(pid: int, behave: Callable[[], object]) -> None:
    try:
        if os.getpid() == pid:
            behave()
    finally:
        os._exit(0)


@contextmanager
def sleeping_child(behave: Callable[[], object] = signal.pause) -> Iterator[int]:
    """A child that runs until the block ends."""
    pid = fork(behave)
    try:
        yield pid
    finally:
        kill_and_reap(pid)
