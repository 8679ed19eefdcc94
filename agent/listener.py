"""The public socket's life on disk: made, never stolen, and removed only if it is still ours.

A lock file beside the socket is held while the agent lives, so that two agents that start at the
same moment cannot both win. The socket is bound under another name, given its mode and owner, and
then renamed into place: nobody ever sees it with the wrong mode, nor the path without a socket.
"""

from __future__ import annotations

import fcntl
import grp
import os
import pwd
import socket
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.errors import StartupError

if TYPE_CHECKING:
    from pathlib import Path

# sockaddr_un.sun_path is 108 bytes with its final NUL (unix(7)).
MAX_PATH_BYTES = 107
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
                f"cannot use the socket path {file.path}: {error.strerror}; choose another "
                f"socket_path or start with the right to write to {file.path.parent}"
            ) from error
        try:
            _refuse_to_steal(file.path)
            self.socket, self._inode = _bind(file)
        except BaseException:
            os.close(self._lock)
            raise

    def close(self) -> None:
        """Stop listening, and remove the file if it is the one that was made here."""
        self.socket.close()
        try:
            if _inode(self.path) == self._inode:
                self.path.unlink()
        except FileNotFoundError:
            pass  # somebody removed it before us, which is no harm now
        os.close(self._lock)


def _make_directory(directory: Path) -> None:
    if not directory.exists():
        directory.mkdir(parents=True, exist_ok=True)
        directory.chmod(0o755)  # workloads of all users must get through, whatever our umask is


def _check_length(path: Path) -> None:
    # The name that is bound first is longer than the path by its prefix and suffix.
    if len(os.fsencode(_temporary(path))) > MAX_PATH_BYTES:
        raise StartupError(
            f"socket path {path} is too long: at most {MAX_PATH_BYTES - 5} bytes fit"
        )


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.new")


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
            f"another agent is serving on {path}; stop it first, or choose another socket_path"
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
        except OSError:
            pass
    raise StartupError(
        f"another program is serving on {path}; stop it first, or choose another socket_path"
    )


def _bind(file: SocketFile) -> tuple[socket.socket, tuple[int, int]]:
    temporary = _temporary(file.path)
    temporary.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.bind(os.fspath(temporary))
        os.chown(temporary, _uid(file.owner), _gid(file.group))
        temporary.chmod(file.mode)
        sock.listen(BACKLOG)
        inode = _inode(temporary)
        temporary.rename(file.path)
    except BaseException as error:
        sock.close()
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise StartupError(f"cannot make the socket {file.path}: {error.strerror}") from error
        raise
    return sock, inode


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


def _gid(group: str | None) -> int:
    if group is None or group.isdecimal():
        return int(group or -1)
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError as error:
        raise StartupError(f"socket_group: there is no group {group!r} on this host") from error
