"""Hold a process by its pidfd, poll whether it is alive, and read its `/proc` directory.

The pidfd is polled here, at each question. `agent.transport.connection` watches it for the life of
a connection, and ends the connection when the process exits.
"""

from __future__ import annotations

import errno
import os
import select
from functools import cache
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Self

from agent.errors import AttestationError, PeerGoneError

if TYPE_CHECKING:
    from types import TracebackType

    from agent.kernel.credentials import Credentials

# Nearly every file of /proc/PID fits. A buffer of a megabyte triples the cost of a usual read.
_CHUNK_BYTES = 1 << 16
_PAGE_BYTES = 4096
# The status of a process with 65,536 groups has half of it.
_RAW_BYTES_MAX = 1 << 20

_CONNECTIONS = count()


class ProcessHandle:
    """A pidfd, which it owns. A closed handle counts as a dead process.

    The kernel reuses a descriptor number at once: polling the number after close would tell about
    another process.
    """

    def __init__(self, pidfd: int) -> None:
        self._pidfd = pidfd
        self._poll = select.poll()
        self._poll.register(pidfd, select.POLLIN)
        self.inode = _pidfs_inode(pidfd)
        """Unique among all processes since boot; None without pidfs (before Linux 6.9)."""
        self.name = (
            f"connection:{next(_CONNECTIONS)}" if self.inode is None else f"process:{self.inode}"
        )
        """Names the process, unique since boot; without pidfs each connection has its own name."""

    def fileno(self) -> int:
        """Return the pidfd, for an event loop to wait on.

        Raises:
            ProcessLookupError: the handle is closed.
        """
        if self._pidfd < 0:
            raise ProcessLookupError(errno.ESRCH, "the connection of the process was closed")
        return self._pidfd

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._pidfd < 0

    def is_alive(self) -> bool:
        """Poll the pidfd: it is readable once the process has exited (pidfd_open(2))."""
        if self._pidfd < 0:
            return False
        return not self._poll.poll(0)

    def close(self) -> None:
        """Close the pidfd. A second call has no effect."""
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1


class ProcessView:
    """Reads of one process's `/proc` directory (attestors.api.WorkloadRef).

    It owns the descriptors of `/proc/PID` and of the files of `raw_read`. Each read polls the pidfd
    afterwards, so that what a read returns belongs to this process.

    Raises:
        AttestationError: the agent is out of descriptors, or may not read `/proc`.
        PeerGoneError: the process exited before the directory was certainly its own.
    """

    def __init__(self, credentials: Credentials, process: ProcessHandle) -> None:
        self._credentials = credentials
        self._process = process
        self._files: dict[str, int] = {}
        if not process.is_alive():
            raise PeerGoneError("the process is gone")
        try:
            self._directory = os.open(
                f"/proc/{credentials.pid}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
            )
        except FileNotFoundError as error:
            raise PeerGoneError("the process is gone") from error
        except OSError as error:
            raise AttestationError(f"the agent cannot read /proc: {error.strerror}") from error
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
        """Close the directory. Later reads raise ProcessLookupError."""
        if self._directory >= 0:
            os.close(self._directory)
            self._directory = -1
            for descriptor in self._files.values():
                os.close(descriptor)
            self._files.clear()

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
        self._require_open()
        return self._process.fileno()

    def read(self, name: str, limit: int = 1 << 20) -> bytes:
        """See WorkloadRef.read."""
        try:
            descriptor = self._open(name)
            try:
                return read_to_end(descriptor, limit)
            finally:
                os.close(descriptor)
        finally:
            self.require_alive()

    def readlink(self, name: str) -> str:
        """See WorkloadRef.readlink."""
        try:
            return os.readlink(name, dir_fd=self._directory)
        finally:
            self.require_alive()

    def stat(self, name: str) -> os.stat_result:
        """See WorkloadRef.stat."""
        try:
            return os.stat(name, dir_fd=self._directory)
        finally:
            self.require_alive()

    def open(self, name: str) -> int:
        """See WorkloadRef.open."""
        descriptor = -1
        try:
            descriptor = self._open(name)
            self.require_alive()
        except OSError:
            if descriptor >= 0:
                os.close(descriptor)
            self.require_alive()
            raise
        return descriptor

    # Several reads in a row need one poll, after the last (`require_alive`): the directory never
    # becomes that of another process.

    def raw_read(self, name: str) -> bytes:
        """Read a file of /proc/PID without a poll. Its descriptor stays open as long as the view.

        For files that the kernel writes in one piece, such as `status`: less than a page is all.
        """
        self._require_open()
        descriptor = self._files.get(name)
        if descriptor is None:
            descriptor = self._files[name] = self._open(name)
        chunk = content = os.pread(descriptor, _CHUNK_BYTES, 0)
        while len(chunk) >= _PAGE_BYTES and len(content) < _RAW_BYTES_MAX:
            chunk = os.pread(descriptor, _CHUNK_BYTES, len(content))
            content += chunk
        return content

    def raw_readlink(self, name: str) -> str:
        """Read a link of /proc/PID without a poll."""
        return os.readlink(name, dir_fd=self._directory)

    def raw_stat(self, name: str) -> os.stat_result:
        """Return the status of what a link of /proc/PID names, without a poll."""
        return os.stat(name, dir_fd=self._directory)

    def require_alive(self) -> None:
        """Poll the pidfd.

        Raises:
            ProcessLookupError: the process is gone, or the view was closed.
        """
        self._require_open()
        if not self._process.is_alive():
            raise ProcessLookupError(errno.ESRCH, "the process is gone")

    def _open(self, name: str) -> int:
        return os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=self._directory)

    def _require_open(self) -> None:
        if self._directory < 0:
            raise ProcessLookupError(errno.ESRCH, "the view of the process was closed")


def read_to_end(descriptor: int, limit: int) -> bytes:
    """Read until the end of the file, at most `limit` bytes.

    One read(2) of a file in `/proc` may return a page although more follows: only an empty read is
    the end (proc(5)).
    """
    chunks = []
    while limit > 0 and (chunk := os.read(descriptor, min(limit, _CHUNK_BYTES))):
        chunks.append(chunk)
        limit -= len(chunk)
    return b"".join(chunks)


def _pidfs_inode(pidfd: int) -> int | None:
    status = os.fstat(pidfd)
    return None if status.st_dev == _anonymous_device() else status.st_ino


@cache
def _anonymous_device() -> int:
    """Return the device of anonymous inodes, which a pidfd has on a kernel without pidfs."""
    with select.epoll() as anonymous:
        return os.fstat(anonymous.fileno()).st_dev


@cache
def boot_id(proc: Path = Path("/proc")) -> str:
    """Read the kernel's name for this boot (proc(5)). With a pidfs inode it names one process."""
    return (proc / "sys/kernel/random/boot_id").read_text().strip()
