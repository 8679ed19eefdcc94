"""Hold a process by its pidfd, and read its `/proc` directory through one descriptor."""

from __future__ import annotations

import os
import select
from functools import cache
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Self

from agent.errors import AttestationError, PeerError, PeerGoneError

if TYPE_CHECKING:
    from types import TracebackType

    from agent.kernel.credentials import Credentials

# More than all but a few files of /proc/PID have.
_USUAL_BYTES = 1 << 16

_CONNECTIONS = count()


class ProcessHandle:
    """Owns a pidfd and closes it. A closed handle counts as a dead process.

    That matters: a descriptor number is reused at once, and asking the number after it was closed
    would tell of somebody else.
    """

    def __init__(self, pidfd: int) -> None:
        self._pidfd = pidfd
        self._poll = select.poll()
        self._poll.register(pidfd, select.POLLIN)
        self.inode = _pidfs_inode(pidfd)
        """Unique among all processes since boot; None where there is no pidfs (below Linux 6.9)."""
        self.name = (
            f"connection:{next(_CONNECTIONS)}" if self.inode is None else f"process:{self.inode}"
        )
        """The process's among all since boot; without pidfs each connection has one of its own."""

    def fileno(self) -> int:
        """The pidfd, to wait on.

        Raises:
            PeerError: the handle is closed.
        """
        if self._pidfd < 0:
            raise PeerError("the connection of this process was closed")
        return self._pidfd

    def is_alive(self) -> bool:
        """Ask the kernel: a pidfd polls readable once its process has exited (pidfd_open(2))."""
        if self._pidfd < 0:
            return False
        return not self._poll.poll(0)

    def close(self) -> None:
        """Close the pidfd; again is harmless."""
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1


class ProcessView:
    """Reads through one `/proc/PID` directory descriptor, which it owns (attestors.WorkloadRef).

    Raises:
        AttestationError: the agent is out of descriptors, or may not look.
        PeerGoneError: the process was gone before the directory was certainly its own.
    """

    def __init__(self, credentials: Credentials, process: ProcessHandle) -> None:
        self._credentials = credentials
        self._process = process
        if not process.is_alive():
            raise PeerGoneError("the process is gone")
        try:
            self._directory = os.open(
                f"/proc/{credentials.pid}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
            )
        except FileNotFoundError as error:
            raise PeerGoneError("the process is gone") from error
        except OSError as error:
            raise AttestationError(f"the agent cannot look at /proc: {error.strerror}") from error
        if not process.is_alive():
            self.close()
            raise PeerGoneError("the process is gone")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the directory; later reads raise, because the descriptor -1 is none."""
        if self._directory >= 0:
            os.close(self._directory)
            self._directory = -1

    @property
    def pid(self) -> int:
        """See WorkloadRef.pid."""
        return self._credentials.pid

    @property
    def uid(self) -> int:
        """See WorkloadRef.uid."""
        return self._credentials.uid

    @property
    def gid(self) -> int:
        """See WorkloadRef.gid."""
        return self._credentials.gid

    @property
    def groups(self) -> tuple[int, ...]:
        """See WorkloadRef.groups."""
        return self._credentials.groups

    @property
    def pidfd(self) -> int:
        """See WorkloadRef.pidfd."""
        return self._process.fileno()

    def read(self, name: str, limit: int = 1 << 20) -> bytes:
        """See WorkloadRef.read."""
        descriptor = self.open(name)
        try:
            # Room for a megabyte costs three times what it takes to read the usual file.
            content = os.read(descriptor, min(limit, _USUAL_BYTES))
            if len(content) == _USUAL_BYTES:
                content += os.read(descriptor, limit - _USUAL_BYTES)
            return content
        finally:
            os.close(descriptor)

    def readlink(self, name: str) -> str:
        """See WorkloadRef.readlink."""
        return os.readlink(name, dir_fd=self._open_directory())

    def stat(self, name: str) -> os.stat_result:
        """See WorkloadRef.stat."""
        return os.stat(name, dir_fd=self._open_directory())

    def open(self, name: str) -> int:
        """See WorkloadRef.open."""
        return os.open(
            name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=self._open_directory()
        )

    def _open_directory(self) -> int:
        if self._directory < 0:
            raise PeerError("the view of this process was closed")
        return self._directory


def _pidfs_inode(pidfd: int) -> int | None:
    status = os.fstat(pidfd)
    return None if status.st_dev == _anonymous_device() else status.st_ino


@cache
def _anonymous_device() -> int:
    """The device of descriptors without a file of their own, as pidfds were before pidfs."""
    with select.epoll() as any_of_them:
        return os.fstat(any_of_them.fileno()).st_dev


@cache
def boot_id(proc: Path = Path("/proc")) -> str:
    """The kernel's name for this boot (proc(5)); with a pidfs inode it names one process of all."""
    return (proc / "sys/kernel/random/boot_id").read_text().strip()
