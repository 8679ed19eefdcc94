"""What must not change while a process is attested: who it is, what it runs, and where it lives.

One look at `/proc/PID` gives a fingerprint; two looks that are equal could still have another
program in between. That is what the pin is for: a descriptor of the address space, which is gone
for good once the process has executed something else, be it the same file again.
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

# Real, effective, saved and filesystem ID, in this order (proc_pid_status(5)); the process's name,
# which it chooses itself, is escaped and stands in a line of its own before these.
_STATUS_IDS = re.compile(
    rb"^Uid:\t\d+\t(?P<uid>\d+)\t.*\nGid:\t\d+\t(?P<gid>\d+)\t.*\n(?:FDSize:.*\n)?"
    rb"Groups:\t(?P<groups>[\d ]*)$",
    re.MULTILINE,
)


class Fingerprint(NamedTuple):
    """A process at one moment. None stands for what the agent may not look at (proc(5)).

    A tuple, because every call makes one and compares it.
    """

    ids: tuple[bytes, bytes, bytes]
    """Its effective user and group, and its supplementary groups, as the kernel writes them."""
    executable: tuple[int, int, int, int, int] | None
    """Device, inode, size, mtime, ctime."""
    cgroup: bytes
    user_namespace: str | None
    """Such as `user:[4026531837]`: namespaces(7)."""
    mount_namespace: str | None
    cgroup_namespace: str | None

    @property
    def uid(self) -> int:
        """Its effective user."""
        return int(self.ids[0])

    @property
    def gid(self) -> int:
        """Its effective group."""
        return int(self.ids[1])

    @property
    def groups(self) -> frozenset[int]:
        """Its supplementary groups."""
        return frozenset(map(int, self.ids[2].split()))


class ProgramPin:
    """A descriptor of the address space that a process has now. Whoever pins closes it.

    Reading it gives nothing once the process has executed a program, or has died (proc(5)).
    """

    def __init__(self, process: ProcessView) -> None:
        self._descriptor = _open_address_space(process)

    @property
    def holds(self) -> bool:
        """Whether there is one: the agent may not look into everybody."""
        return self._descriptor >= 0

    def changed(self) -> bool:
        """Whether the process has left that address space; False if there is no pin."""
        return self.holds and not os.pread(self._descriptor, 1, 0)

    def close(self) -> None:
        """Let go; again is harmless."""
        if self.holds:
            os.close(self._descriptor)
            self._descriptor = -1


def read_fingerprint(process: ProcessView) -> Fingerprint:
    """The process as it is now.

    Raises:
        AttestationError: /proc is not as expected.
        PeerGoneError: the process is gone.
    """
    try:
        status = _STATUS_IDS.search(process.read("status"))
        fingerprint = Fingerprint(
            (status["uid"], status["gid"], status["groups"]) if status else (b"", b"", b""),
            _permitted(_executable, process),
            process.read("cgroup"),
            *(_permitted(process.readlink, name) for name in _NAMESPACES),
        )
    except (ProcessLookupError, FileNotFoundError) as error:
        raise PeerGoneError("the process is gone") from error
    if status is None:
        raise AttestationError("/proc/PID/status is not as this kernel's proc(5) has it")
    return fingerprint


def executable_name(process: ProcessView) -> str | None:
    """What the kernel calls its program, for people to read.

    Files are renamed, and whoever has a mount namespace of its own can give any name to its
    program: this is no evidence.

    Raises:
        PeerGoneError: the process is gone.
    """
    try:
        return _permitted(process.readlink, "exe")
    except (ProcessLookupError, FileNotFoundError) as error:
        raise PeerGoneError("the process is gone") from error


def check_credentials(now: Fingerprint, at_connect: Credentials) -> None:
    """Whether the process is still who connected.

    Raises:
        PeerError: it is not.
    """
    if (now.uid, now.gid) != (at_connect.uid, at_connect.gid):
        raise PeerError("the process changed its user or group after it connected")
    # Groups without a mapping look alike and were left out at connect.
    if now.groups - {overflow_ids().gid} != frozenset(at_connect.groups):
        raise PeerError("the process changed its supplementary groups after it connected")


@cache
def own_user_namespace() -> str:
    """The agent's own."""
    return str(Path("/proc/self/ns/user").readlink())


def _open_address_space(process: ProcessView) -> int:
    """A descriptor of it; -1 if the agent may not look."""
    may_look = True
    # The environment costs least to read. A process without one has a memory map at any rate, and
    # that may be read with CAP_SYS_PTRACE alone.
    for name in ("environ", "maps"):
        try:
            descriptor = process.open(name)
        except PermissionError:
            may_look = False
            continue
        except (ProcessLookupError, FileNotFoundError) as error:
            raise PeerGoneError("the process is gone") from error
        if os.pread(descriptor, 1, 0):
            return descriptor
        os.close(descriptor)
    if may_look:
        raise PeerGoneError("the process has no address space any more")
    return -1


def _permitted(look: Callable[[V], T], at: V) -> T | None:
    """None where the agent may not look, or a file system is out of order."""
    try:
        return look(at)
    except (ProcessLookupError, FileNotFoundError):
        raise
    except OSError:
        return None


def _executable(process: ProcessView) -> tuple[int, int, int, int, int]:
    status = process.stat("exe")
    return (
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )
