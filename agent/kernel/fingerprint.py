"""Fingerprint a process during its attestation: its credentials, its program, its namespaces.

A fingerprint is one look at `/proc/PID`. Between two equal fingerprints the process may still have
run another program. The pin closes this gap: it is a descriptor of the address space, which ends
for good when the process executes a program, even the same file again.
"""

from __future__ import annotations

import os
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from agent.errors import AttestationError, PeerError, PeerGoneError
from agent.kernel.credentials import overflow_ids

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.kernel.credentials import Credentials
    from agent.kernel.process import ProcessView

T = TypeVar("T")
V = TypeVar("V")

_NAMESPACES = ("ns/user", "ns/mnt", "ns/cgroup")

# Real, effective, saved and filesystem ID, in this order (proc_pid_status(5)). The process chooses
# its own name, but the kernel escapes it and writes it in a line of its own before these.
_STATUS_IDS = re.compile(
    rb"^Uid:\t\d+\t(?P<uid>\d+)\t.*\nGid:\t\d+\t(?P<gid>\d+)\t.*\n(?:FDSize:.*\n)?"
    rb"Groups:\t(?P<groups>[\d ]*)$",
    re.MULTILINE,
)


class Fingerprint(NamedTuple):
    """A process at one moment. None stands for a fact that the agent may not read (proc(5)).

    A tuple, because every call makes one and compares it.
    """

    ids: tuple[bytes, bytes, bytes]
    """Its effective user and group, and its supplementary groups, as the kernel writes them."""
    executable: tuple[int, int, int, int, int] | None
    """Device, inode, size, mtime, ctime."""
    cgroup: bytes
    user_namespace: str | None
    """Such as `user:[4026531837]` (namespaces(7))."""
    mount_namespace: str | None
    cgroup_namespace: str | None

    @property
    def uid(self) -> int:
        """Its effective user ID."""
        return int(self.ids[0])

    @property
    def gid(self) -> int:
        """Its effective group ID."""
        return int(self.ids[1])

    @property
    def groups(self) -> frozenset[int]:
        """Its supplementary group IDs."""
        return frozenset(map(int, self.ids[2].split()))


class ProgramPin:
    """A descriptor of the process's present address space, which it owns: `close` it.

    A read returns nothing once the process has executed a program or died (proc(5)).
    """

    def __init__(self, process: ProcessView) -> None:
        self._descriptor = _open_address_space(process)

    @property
    def holds(self) -> bool:
        """Whether the agent holds a descriptor: it may not open those of every process."""
        return self._descriptor >= 0

    def changed(self) -> bool:
        """Return whether the process left that address space; False if the pin holds none."""
        return self.holds and not os.pread(self._descriptor, 1, 0)

    def close(self) -> None:
        """Close the descriptor. A second call has no effect."""
        if self.holds:
            os.close(self._descriptor)
            self._descriptor = -1


def read_fingerprint(process: ProcessView) -> Fingerprint:
    """Read the process's fingerprint as it is now.

    Raises:
        AttestationError: /proc/PID/status has an unknown format.
        PeerGoneError: the process is gone.
    """
    try:
        status = _STATUS_IDS.search(process.raw_read("status"))
        fingerprint = Fingerprint(
            (status["uid"], status["gid"], status["groups"]) if status else (b"", b"", b""),
            _permitted(_executable, process),
            process.raw_read("cgroup"),
            *[_permitted(process.raw_readlink, name) for name in _NAMESPACES],
        )
        process.require_alive()
    except (ProcessLookupError, FileNotFoundError) as error:
        raise PeerGoneError("the process is gone") from error
    if status is None:
        raise AttestationError("/proc/PID/status does not have the format of proc_pid_status(5)")
    return fingerprint


def executable_name(process: ProcessView) -> str | None:
    """Read the path of the process's program, for display; None if the agent may not read it.

    This is no evidence: files are renamed, and a process in a mount namespace of its own can give
    its program any path.

    Raises:
        PeerGoneError: the process is gone.
    """
    try:
        return _permitted(process.readlink, "exe")
    except (ProcessLookupError, FileNotFoundError) as error:
        raise PeerGoneError("the process is gone") from error


def check_credentials(now: Fingerprint, at_connect: Credentials) -> None:
    """Compare the process's credentials with those at connect.

    Raises:
        PeerError: they differ.
    """
    if (now.uid, now.gid) != (at_connect.uid, at_connect.gid):
        raise PeerError("the process changed its user or group after it connected")
    # All unmapped groups have one number, and were left out at connect.
    if now.groups - {overflow_ids().gid} != frozenset(at_connect.groups):
        raise PeerError("the process changed its supplementary groups after it connected")


@cache
def own_user_namespace() -> str:
    """Read the link of the agent's own user namespace."""
    return str(Path("/proc/self/ns/user").readlink())


def _open_address_space(process: ProcessView) -> int:
    """Open a descriptor of the address space; -1 if the agent may not."""
    is_permitted = True
    # `environ` costs least to read. A process with an empty environment still has `maps`, which the
    # kernel shows only with CAP_SYS_PTRACE.
    for name in ("environ", "maps"):
        try:
            descriptor = process.open(name)
        except PermissionError:
            is_permitted = False
            continue
        except (ProcessLookupError, FileNotFoundError) as error:
            raise PeerGoneError("the process is gone") from error
        if os.pread(descriptor, 1, 0):
            return descriptor
        os.close(descriptor)
    if is_permitted:
        raise PeerGoneError("the process has no address space any more")
    return -1


def _permitted(look: Callable[[V], T], at: V) -> T | None:
    """Return what `look` reads; None if the agent may not, or a file system fails."""
    try:
        return look(at)
    except (ProcessLookupError, FileNotFoundError):
        raise
    except OSError:
        return None


def _executable(process: ProcessView) -> tuple[int, int, int, int, int]:
    status = process.raw_stat("exe")
    return (
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )
