"""Who is calling: what the kernel recorded when a socket was connected, and a pinned view of /proc.

Rules (reference: unix(7), pidfd_open(2), proc(5)):

* identity is the peer's credentials *at connect*, and a pidfd taken from the socket itself
  (SO_PEERPIDFD), so that a PID is never looked up by its number alone;
* a process lives as long as its pidfd does not poll readable. A zombie polls readable: it is dead;
* `/proc/PID` is opened while the pidfd is alive and read through that one descriptor. A PID is not
  given to another process before its owner is reaped, so what was read while the pidfd stayed
  alive belongs to that process;
* a caller whom this kernel cannot name (another PID namespace, a user that is not mapped here) is
  refused with the reason, never matched.

Nothing here decides who gets what.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import socket
import struct
import sys
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Self

from agent.admission import Place, cgroup_of
from agent.config import Proof
from agent.errors import AttestationError, PeerError, PeerGoneError

if TYPE_CHECKING:
    from types import TracebackType

# include/uapi/asm-generic/socket.h; Python 3.11 names neither.
SO_PEERGROUPS = 59
SO_PEERPIDFD = 77

_UCRED = struct.Struct("=iII")
# setgroups(2): at most 65536 groups (NGROUPS_MAX), four bytes each.
_GROUPS_BYTES_MAX = 4 * 65536
# socket.getsockopt() takes no longer buffer: enough for 256 groups, which is nearly everybody.
_PYTHON_BYTES_MAX = 1024

# More than all but a few files of /proc/PID have.
_USUAL_BYTES = 1 << 16

# These say nothing of the peer.
_OUR_SHORTAGES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})

_CONNECTIONS = count()
_LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """The peer's credentials when it called connect(2). They never change for a connection."""

    pid: int
    uid: int
    gid: int
    groups: tuple[int, ...]


class Weakness(StrEnum):
    """What a kernel cannot tell of a caller, and others can."""

    NO_PEERPIDFD = (
        "no SO_PEERPIDFD (Linux 6.5): a PID reused between connect and accept is not seen"
    )
    NO_PIDFS = "no pidfs (Linux 6.9): the process has no number that is never used again"


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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, weakref_slot=True)
class Caller:
    """A connected process as the kernel knows it, one for each connection.

    Whoever holds the connection closes it.
    """

    credentials: Credentials
    proof: Proof
    process: ProcessHandle
    cgroup: str = ""
    """Whose cgroup it was in when it was identified; empty at the root."""
    place: Place = field(init=False)
    """Whom its calls are put down to."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "place", Place(self.credentials.uid, self.cgroup))

    @property
    def weaknesses(self) -> tuple[str, ...]:
        """What this kernel could not tell, and others can."""
        found = []
        if self.proof is Proof.PIDFD_OPEN:
            found.append(Weakness.NO_PEERPIDFD.value)
        if self.process.inode is None:
            found.append(Weakness.NO_PIDFS.value)
        return tuple(found)

    def open_proc(self) -> ProcessView:
        """Open the process's `/proc` directory for one round of reads.

        Raises:
            PeerGoneError: the process is gone.
        """
        return ProcessView(self)

    def close(self) -> None:
        """Give up the pidfd; the caller counts as dead from now on."""
        self.process.close()


class ProcessView:
    """Reads through one `/proc/PID` directory descriptor, which it owns (attestors.WorkloadRef).

    Raises:
        AttestationError: the agent is out of descriptors, or may not look.
        PeerGoneError: the process was gone before the directory was certainly its own.
    """

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        if not caller.process.is_alive():
            raise PeerGoneError("the process is gone")
        try:
            self._directory = os.open(
                f"/proc/{caller.credentials.pid}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
            )
        except FileNotFoundError as error:
            raise PeerGoneError("the process is gone") from error
        except OSError as error:
            raise AttestationError(f"the agent cannot look at /proc: {error.strerror}") from error
        if not caller.process.is_alive():
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
        return self._caller.credentials.pid

    @property
    def uid(self) -> int:
        """See WorkloadRef.uid."""
        return self._caller.credentials.uid

    @property
    def gid(self) -> int:
        """See WorkloadRef.gid."""
        return self._caller.credentials.gid

    @property
    def groups(self) -> tuple[int, ...]:
        """See WorkloadRef.groups."""
        return self._caller.credentials.groups

    @property
    def pidfd(self) -> int:
        """See WorkloadRef.pidfd."""
        return self._caller.process.fileno()

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


def identify(sock: socket.socket, required: Proof = Proof.PIDFD_OPEN) -> Caller:
    """Who connected this socket.

    The result owns a pidfd: close it.

    Raises:
        PeerGoneError: the process is gone.
        PeerError: this kernel cannot name it, or not with the required proof.
        OSError: the agent is out of descriptors or memory.
    """
    credentials = read_credentials(sock)
    pidfd, proof = _open_pidfd(sock, credentials.pid)
    process = ProcessHandle(pidfd)
    try:
        cgroup = _read_cgroup(credentials.pid) if process.is_alive() else ""
        _check(process, proof, required)
    except BaseException:
        process.close()
        raise
    return Caller(credentials=credentials, proof=proof, process=process, cgroup=cgroup)


def _check(process: ProcessHandle, proof: Proof, required: Proof) -> None:
    """After what was read by PID: while the process lived, nobody else had its PID."""
    if not process.is_alive():
        raise PeerGoneError("the process exited before its connection was accepted")
    if not proof.satisfies(required):
        raise PeerError(
            f"the kernel's proof of who connected is {proof}, and require_proof asks for {required}"
        )


def _read_cgroup(pid: int) -> str:
    try:
        descriptor = os.open(f"/proc/{pid}/cgroup", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in _OUR_SHORTAGES:
            raise
        return ""  # gone, as is found out next, or hidden from the agent: the user alone counts
    try:
        return cgroup_of(os.read(descriptor, _USUAL_BYTES))
    except ProcessLookupError:
        return ""
    finally:
        os.close(descriptor)


def read_pid(sock: socket.socket) -> int:
    """The PID alone, of whoever connected; 0 if it cannot be seen from here."""
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid: int = _UCRED.unpack(raw)[0]
    return pid


def read_user(sock: socket.socket) -> int:
    """The user alone, of whoever connected, even if it has hung up."""
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    uid: int = _UCRED.unpack(raw)[1]
    return uid


def read_credentials(sock: socket.socket) -> Credentials:
    """SO_PEERCRED and SO_PEERGROUPS, refusing what does not name one process and one user.

    Raises:
        PeerError: the kernel cannot name the caller here.
    """
    pid, uid, gid = _UCRED.unpack(
        sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    )
    if pid <= 0:
        raise PeerError("the process is in a PID namespace that is not visible from here")
    unmapped = overflow_ids()
    if uid in {0xFFFFFFFF, unmapped.uid} or gid in {0xFFFFFFFF, unmapped.gid}:
        raise PeerError("the user or group of the process is not mapped in this user namespace")
    # A group that is not mapped says nothing; leaving it out can only remove matches.
    groups = tuple(group for group in _read_groups(sock) if group != unmapped.gid)
    return Credentials(pid=pid, uid=uid, gid=gid, groups=groups)


def _read_groups(sock: socket.socket) -> tuple[int, ...]:
    try:
        raw = sock.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, _PYTHON_BYTES_MAX)
    except OSError as error:
        if error.errno != errno.ERANGE:
            raise
        raw = _read_many_groups(sock)
    return struct.unpack(f"={len(raw) // 4}I", raw)


def _read_many_groups(sock: socket.socket) -> bytes:
    buffer = ctypes.create_string_buffer(_GROUPS_BYTES_MAX)
    length = ctypes.c_uint32(_GROUPS_BYTES_MAX)
    failed = _LIBC.getsockopt(
        sock.fileno(), socket.SOL_SOCKET, SO_PEERGROUPS, buffer, ctypes.byref(length)
    )
    if failed:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return buffer.raw[: length.value]


def _open_pidfd(sock: socket.socket, pid: int) -> tuple[int, Proof]:
    try:
        raw = sock.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD, 4)
        return int.from_bytes(raw, sys.byteorder), Proof.PEERPIDFD
    except OSError as error:
        if error.errno in _OUR_SHORTAGES:
            raise
        # Only "no such option" means an old kernel. Everything else, EINVAL of Linux 6.5 to 6.15
        # first, is what a reaped peer looks like.
        if error.errno != errno.ENOPROTOOPT:
            raise PeerGoneError("the process exited before its connection was accepted") from error
    try:
        return os.pidfd_open(pid), Proof.PIDFD_OPEN
    except ProcessLookupError as error:
        raise PeerGoneError("the process exited before its connection was accepted") from error


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


@dataclass(frozen=True, slots=True)
class OverflowIds:
    """What the kernel reports for IDs without a mapping here; -1 where every ID has one."""

    uid: int
    gid: int


@cache
def overflow_ids(proc: Path = Path("/proc")) -> OverflowIds:
    """The IDs that stand for "somebody" in this user namespace (user_namespaces(7)).

    Where every ID is mapped, as on a host, 65534 is the ordinary user nobody and may be matched.
    """
    return OverflowIds(
        uid=_overflow_id(proc / "self/uid_map", proc / "sys/kernel/overflowuid"),
        gid=_overflow_id(proc / "self/gid_map", proc / "sys/kernel/overflowgid"),
    )


def _overflow_id(mapping: Path, overflow: Path) -> int:
    mapped = sum(int(line.split()[2]) for line in mapping.read_text().splitlines())
    # 2**32 - 1 itself is never an ID, so a full map counts one less.
    return -1 if mapped >= (1 << 32) - 1 else int(overflow.read_text())
