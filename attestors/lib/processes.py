"""Processes as the container attestors see them: where they are, and which was there first."""

from __future__ import annotations

import os
import select
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from attestors.api import AttestorError
from attestors.lib.cgroups import CgroupError, Located, locate

if TYPE_CHECKING:
    from attestors.api import WorkloadRef
    from attestors.lib.cgroups import Container

# More than any /proc/PID/stat or cgroup file has: sixteen hierarchies, paths of 4096 bytes.
_READ_BYTES = 1 << 17
# Fields of /proc/PID/stat after the name, which is in parentheses and may hold anything: the third
# of all comes first here, and the start is the 22nd (proc_pid_stat(5)).
_START_FIELD = 22 - 3


def own_cgroup() -> bytes:
    """Where the agent is itself: the containers around it are everybody's."""
    return Path("/proc/self/cgroup").read_bytes()


def locate_workload(workload: WorkloadRef, own: bytes) -> Located:
    """The container that the process is in.

    Raises:
        AttestorError: its cgroups contradict each other, or it is gone.
    """
    try:
        return locate(workload.read("cgroup"), own)
    except CgroupError as error:
        raise AttestorError(str(error)) from error
    except (ProcessLookupError, FileNotFoundError) as error:
        raise AttestorError("the process exited") from error


def started(workload: WorkloadRef) -> int:
    """When the process was started, in clock ticks since the host's boot.

    Raises:
        AttestorError: it is gone.
    """
    try:
        return _start(workload.read("stat"))
    except (ProcessLookupError, FileNotFoundError) as error:
        raise AttestorError("the process exited") from error


@dataclass(slots=True, kw_only=True)
class ContainerInit:
    """The first process of a container, held by a pidfd that this owns: `close` it.

    While it lives the container is the one it was.
    """

    pidfd: int
    container: Container
    started: int
    """In clock ticks since the host's boot."""

    @classmethod
    def open(cls, pid: int, own: bytes) -> ContainerInit:
        """Take hold of the process that an engine names.

        Raises:
            AttestorError: there is none, or it is in no container.
        """
        who = f"process {pid}, the container's first by the engine's word"
        with ExitStack() as held:
            try:
                pidfd = os.pidfd_open(pid)
                held.callback(os.close, pidfd)
                cgroup, stat = _look(pid, "cgroup", "stat")
                container = locate(cgroup, own).container
            except OSError as error:
                raise AttestorError(f"{who}: {error.strerror}") from error
            except CgroupError as error:
                raise AttestorError(f"{who}: {error}") from error
            # Alive afterwards means that all of it was read of this process.
            if not is_alive(pidfd):
                raise AttestorError(f"{who}, has exited")
            if container is None:
                raise AttestorError(f"{who}, is in no container")
            held.pop_all()
            return cls(pidfd=pidfd, container=container, started=_start(stat))

    @property
    def is_alive(self) -> bool:
        """Ask the kernel."""
        return self.pidfd >= 0 and is_alive(self.pidfd)

    def close(self) -> None:
        """Let go; again is harmless. It counts as dead from now on."""
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


def _start(stat: bytes) -> int:
    return int(stat.rpartition(b")")[2].split()[_START_FIELD])


def _look(pid: int, *names: str) -> list[bytes]:
    """Files of one process: the directory is opened once, and is never another's."""
    directory = os.open(f"/proc/{pid}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return [_read(directory, name) for name in names]
    finally:
        os.close(directory)


def _read(directory: int, name: str) -> bytes:
    descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    try:
        return os.read(descriptor, _READ_BYTES)
    finally:
        os.close(descriptor)


def is_alive(pidfd: int) -> bool:
    """A pidfd polls readable once its process has exited (pidfd_open(2))."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return not poll.poll(0)
