"""Processes for the container attestors: container and start time of a process."""

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
    from collections.abc import Callable

    from attestors.api import WorkloadRef
    from attestors.lib.cgroups import Container

# Above the size of any /proc/PID/stat or cgroup file: sixteen hierarchies, paths of 4,096 bytes.
_READ_BYTES = 1 << 17
# The start time is field 22 of /proc/PID/stat (proc_pid_stat(5)). The split begins at field 3,
# after the name in parentheses, which may contain any character.
_START_FIELD = 22 - 3


def own_cgroup() -> bytes:
    """Read the agent's own cgroup: a container around the agent contains every process."""
    return Path("/proc/self/cgroup").read_bytes()


def locate_workload(workload: WorkloadRef, own: bytes) -> Located:
    """Find the container of the process.

    Raises:
        AttestorError: its cgroups contradict each other or cannot be read, or the process is gone.
    """
    try:
        return locate(_read(workload, "cgroup"), own)
    except CgroupError as error:
        raise AttestorError(str(error)) from error


def start_time(workload: WorkloadRef) -> int:
    """Read the start time of the process, in clock ticks since the host's boot.

    Raises:
        AttestorError: it cannot be read, or the process is gone.
    """
    return _start_time(_read(workload, "stat"))


def read_at(directory: int, name: str) -> bytes:
    """Read a file below a directory descriptor.

    Raises:
        OSError: the file cannot be read.
    """
    descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    try:
        return os.read(descriptor, _READ_BYTES)
    finally:
        os.close(descriptor)


def is_alive(pidfd: int) -> bool:
    """Poll a pidfd: it is readable once its process has exited (pidfd_open(2))."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return not poll.poll(0)


@dataclass(slots=True, kw_only=True)
class ContainerInit:
    """The first process of a container, and a pidfd of it, which this owns: `close` it.

    While the process lives, the container is the same.
    """

    pidfd: int
    container: Container
    started: int
    """Start time in clock ticks since the host's boot."""

    @classmethod
    def open(
        cls, pid: int, own: bytes, read: Callable[[int, str], bytes] = read_at
    ) -> ContainerInit:
        """Open the process that an engine names as the first one of a container.

        Raises:
            AttestorError: there is no such process, or it is in no container.
        """
        process = f"process {pid}, which the engine names as the container's first,"
        with ExitStack() as held:
            try:
                pidfd = os.pidfd_open(pid)
                held.callback(os.close, pidfd)
                cgroup, stat = _look(pid, read, "cgroup", "stat")
                container = locate(cgroup, own).container
            except OSError as error:
                raise AttestorError(f"{process} cannot be read: {error.strerror}") from error
            except CgroupError as error:
                raise AttestorError(f"{process} is not in one container: {error}") from error
            # A process that is alive now had the PID during the reads.
            if not is_alive(pidfd):
                raise AttestorError(f"{process} has exited")
            if container is None:
                raise AttestorError(f"{process} is in no container")
            held.pop_all()
            return cls(pidfd=pidfd, container=container, started=_start_time(stat))

    @property
    def is_alive(self) -> bool:
        """Whether the process is alive and the pidfd is open."""
        return self.pidfd >= 0 and is_alive(self.pidfd)

    def close(self) -> None:
        """Close the pidfd. A second call has no effect."""
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


def _read(workload: WorkloadRef, name: str) -> bytes:
    try:
        return workload.read(name)
    except ProcessLookupError as error:
        raise AttestorError("the process exited") from error
    except OSError as error:
        raise AttestorError(f"/proc/PID/{name} cannot be read: {error.strerror}") from error


def _start_time(stat: bytes) -> int:
    return int(stat.rpartition(b")")[2].split()[_START_FIELD])


def _look(pid: int, read: Callable[[int, str], bytes], *names: str) -> list[bytes]:
    """Read files of one process through one descriptor of its directory."""
    directory = os.open(f"/proc/{pid}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return [read(directory, name) for name in names]
    finally:
        os.close(directory)
