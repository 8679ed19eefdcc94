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
from typing import TYPE_CHECKING

from agent.errors import PeerError

if TYPE_CHECKING:
    from collections.abc import Callable

# sizeof(sun_path) without the NUL at its end: unix(7).
MAX_SOCKET_PATH = 107

# include/uapi/asm-generic/socket.h; Python 3.11 has no name for it.
SO_PEERGROUPS = 59

_UCRED = struct.Struct("=iII")
# setgroups(2): at most 65536 groups (NGROUPS_MAX), four bytes each.
_GROUPS_BYTES_MAX = 4 * 65536
# socket.getsockopt() takes no longer buffer. It holds 256 groups, more than nearly every user has.
_PYTHON_BYTES_MAX = 1024
_LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """The peer's credentials when it called connect(2). They never change for a connection."""

    pid: int
    uid: int
    gid: int
    groups: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class OverflowIds:
    """The IDs that stand for every unmapped user and group; -1 where every ID is mapped."""

    uid: int
    gid: int


@cache
def overflow_ids(proc: Path = Path("/proc")) -> OverflowIds:
    """Read the overflow IDs of this user namespace (user_namespaces(7)).

    Where every ID is mapped, as on a host, 65534 is the ordinary user nobody and may be matched.
    """
    return OverflowIds(
        uid=_overflow_id(proc / "self/uid_map", proc / "sys/kernel/overflowuid"),
        gid=_overflow_id(proc / "self/gid_map", proc / "sys/kernel/overflowgid"),
    )


def _overflow_id(mapping: Path, overflow: Path) -> int:
    mapped = sum(int(line.split()[2]) for line in mapping.read_text().splitlines())
    # 2**32 - 1 is never an ID, so a full map has one less than 2**32.
    return -1 if mapped >= (1 << 32) - 1 else int(overflow.read_text())


def read_pid(sock: socket.socket) -> int:
    """Read only the peer's PID; 0 for a process of a PID namespace that is not visible here."""
    return read_peer(sock)[0]


def read_peer(sock: socket.socket) -> tuple[int, int, int]:
    """Read only the peer's PID, user ID and group ID (SO_PEERCRED)."""
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    peer: tuple[int, int, int] = _UCRED.unpack(raw)
    return peer


def read_user(sock: socket.socket) -> int:
    """Read only the peer's user ID; it stays readable after the peer has hung up."""
    return read_peer(sock)[1]


def read_credentials(
    sock: socket.socket, overflow: Callable[[], OverflowIds] = overflow_ids
) -> Credentials:
    """Read SO_PEERCRED and SO_PEERGROUPS.

    Raises:
        PeerError: the credentials do not name one process and one user here.
    """
    pid, uid, gid = read_peer(sock)
    if pid <= 0:
        raise PeerError("the process is in a PID namespace that is not visible from here")
    unmapped = overflow()
    if uid in {0xFFFFFFFF, unmapped.uid} or gid in {0xFFFFFFFF, unmapped.gid}:
        raise PeerError("the user or group of the process is not mapped in this user namespace")
    # An unmapped group names no group. Leaving it out can only remove matches.
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
