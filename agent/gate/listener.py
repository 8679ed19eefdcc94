"""The public socket's life on disk: made, never stolen, and removed only if it is still ours.

A lock file beside the socket is held while the agent lives, so that two agents that start at the
same moment cannot both win. The socket is closed to everybody until it has its owner and mode.
"""

from __future__ import annotations

import errno
import fcntl
import grp
import os
import pwd
import socket
import stat
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.errors import StartupError
from agent.kernel.credentials import MAX_SOCKET_PATH
from agent.kernel.sender import stamp_senders

if TYPE_CHECKING:
    from pathlib import Path

# The kernel cuts this to net.core.somaxconn, 4096 by default.
BACKLOG = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketFile:
    """Where the socket is to appear, and who may connect."""

    path: Path
    mode: int
    owner: str | None = None
    group: str | None = None


class Listener:
    """A listening Unix socket, its file and its lock, which it owns.

    Raises:
        StartupError: the path is taken by a live server or by something that is no socket, or
            cannot be made as asked.
    """

    def __init__(self, file: SocketFile) -> None:
        self.path = file.path
        _check_length(file.path)
        try:
            _make_directory(file.path.parent)
            self._lock = _lock(file.path)
        except OSError as error:
            raise StartupError(
                f"cannot use the socket path {file.path}: {error.strerror}; choose another path, "
                f"or start with the right to write to {file.path.parent}"
            ) from error
        try:
            _refuse_to_steal(file.path)
            self.socket, self._inode = _bind(file)
        except BaseException:
            os.close(self._lock)
            raise

    def close(self) -> None:
        """Remove the file if it is the one that was made here, and stop listening."""
        # In this order: while the socket is open, nobody else's file can have its inode number.
        with suppress(FileNotFoundError):
            if _inode(self.path) == self._inode:
                self.path.unlink()
        self.socket.close()
        os.close(self._lock)


def disregarded(file: SocketFile) -> tuple[str, ...]:
    """What of the settings the socket that is there, which another made, is not like.

    Raises:
        StartupError: there is no such user or group.
    """
    status = file.path.stat()
    pairs = {
        "socket_mode": (file.mode, stat.S_IMODE(status.st_mode)),
        "socket_owner": (_uid(file.owner), status.st_uid),
        "socket_group": (group_id(file.group), status.st_gid),
    }
    return tuple(name for name, (wanted, is_) in pairs.items() if wanted not in {-1, is_})


def _make_directory(directory: Path) -> None:
    if not directory.exists():
        directory.mkdir(parents=True, exist_ok=True)
        directory.chmod(0o755)  # workloads of all users must get through, whatever our umask is


def _check_length(path: Path) -> None:
    if len(os.fsencode(path)) > MAX_SOCKET_PATH:
        raise StartupError(f"socket path {path} is too long: at most {MAX_SOCKET_PATH} bytes fit")


def _lock(path: Path) -> int:
    descriptor = os.open(
        path.with_name(f".{path.name}.lock"),
        os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW,
        0o600,
    )
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise StartupError(
            f"another agent is serving on {path}; stop it first, or choose another path"
        ) from error
    return descriptor


def _refuse_to_steal(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise StartupError(f"{path} exists and is not a socket; it was left untouched")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(0)  # a full queue is a sign of life too
        try:
            probe.connect(os.fspath(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return
        except PermissionError as error:
            raise StartupError(
                f"{path} is a socket that this user may not connect to, so that nobody can tell "
                "whether it is in use; remove it if it is not"
            ) from error
        except OSError:
            pass
    raise StartupError(
        f"another program is serving on {path}; stop it first, or choose another path"
    )


def _bind(file: SocketFile) -> tuple[socket.socket, tuple[int, int]]:
    owner, group = _uid(file.owner), group_id(file.group)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        file.path.unlink(missing_ok=True)  # stale, as was just found out
        umask = os.umask(0o777)
        try:
            sock.bind(os.fspath(file.path))
        finally:
            os.umask(umask)
        _open_up(sock, file, owner, group)
        return sock, _inode(file.path)
    except OSError as error:
        sock.close()
        raise StartupError(
            f"cannot make the socket {file.path}: {error.strerror}{_remedy(error, file)}"
        ) from error


def _remedy(error: OSError, file: SocketFile) -> str:
    is_given_away = file.owner is not None or file.group is not None
    if error.errno != errno.EPERM or not is_given_away:
        return ""
    return (
        "; an agent that is not root can give it to no other user, and only to a group that it is "
        "in itself: name that in SupplementaryGroups= of its unit"
    )


def _open_up(sock: socket.socket, file: SocketFile, owner: int, group: int) -> None:
    try:
        os.chown(file.path, owner, group)
        file.path.chmod(file.mode)
        stamp_senders(sock)
        sock.listen(BACKLOG)
    except OSError:
        with suppress(OSError):
            file.path.unlink()
        raise


def _inode(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_dev, status.st_ino


def _uid(owner: str | None) -> int:
    if owner is None or owner.isdecimal():
        return int(owner or -1)
    try:
        return pwd.getpwnam(owner).pw_uid
    except KeyError as error:
        raise StartupError(f"socket_owner: there is no user {owner!r} on this host") from error


def group_id(group: str | None) -> int:
    """The number of a group that is given by name or number; -1 if it is not given.

    Raises:
        StartupError: there is no such group.
    """
    if group is None or group.isdecimal():
        return int(group or -1)
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError as error:
        raise StartupError(
            "socket_group, admin_socket_group or telemetry.group: there is no group"
            f" {group!r} on this host"
        ) from error
