"""Read the credentials of a socket's peer: SO_PEERCRED and SO_PEERGROUPS (unix(7))."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from agent.errors import PeerError

# sizeof(sun_path) less the NUL that ends it: unix(7).
MAX_SOCKET_PATH = 107

# include/uapi/asm-generic/socket.h; Python 3.11 names neither.
SO_PEERGROUPS = 59

_UCRED = struct.Struct("=iII")
# setgroups(2): at most 65536 groups (NGROUPS_MAX), four bytes each.
_GROUPS_BYTES_MAX = 4 * 65536
# socket.getsockopt() takes no longer buffer: enough for 256 groups, which is nearly everybody.
_PYTHON_BYTES_MAX = 1024
_LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """The peer's credentials when it called connect(2). They never change for a connection."""

    pid: int
    uid: int
    gid: int
    groups: tuple[int, ...]


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
