"""Make the socket file, and remove it at the end if it is still the agent's own.

The agent holds a lock file beside the socket while it runs: of two agents that start at the same
moment only one gets the path. A socket with a live server is never replaced. No other user can
connect before the file has its owner and mode.
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

# The kernel lowers this to net.core.somaxconn, 4096 by default.
BACKLOG = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketFile:
    """The path of the socket, and its owner, group and mode."""

    path: Path
    mode: int
    owner: str | None = None
    group: str | None = None


class Listener:
    """A listening Unix socket with its file and its lock, which it owns.

    Raises:
        StartupError: a live server or a file that is no socket has the path, or the socket cannot
            be made as configured.
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
            _require_free(file.path)
            self.socket, self._inode = _bind(file)
        except BaseException:
            os.close(self._lock)
            raise

    def close(self) -> None:
        """Remove the file if it is still the one made here, and stop listening."""
        # In this order: while the socket is open, no other file can have its inode number.
        with suppress(FileNotFoundError):
            if _inode(self.path) == self._inode:
                self.path.unlink()
        self.socket.close()
        os.close(self._lock)


def settings_without_effect(file: SocketFile) -> tuple[str, ...]:
    """Name the settings that the existing socket file, made by another program, does not have.

    Raises:
        StartupError: a configured user or group does not exist.
    """
    status = file.path.stat()
    pairs = {
        "socket_mode": (file.mode, stat.S_IMODE(status.st_mode)),
        "socket_owner": (_uid(file.owner), status.st_uid),
        "socket_group": (group_id(file.group), status.st_gid),
    }
    return tuple(name for name, (wanted, actual) in pairs.items() if wanted not in {-1, actual})


def _make_directory(directory: Path) -> None:
    if not directory.exists():
        directory.mkdir(parents=True, exist_ok=True)
        # Whatever the umask is, workloads of all users must reach the socket.
        directory.chmod(0o755)


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


def _require_free(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise StartupError(f"{path} exists and is not a socket; remove it, or choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(0)  # EAGAIN, a full queue, means that the server is alive
        try:
            probe.connect(os.fspath(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return
        except PermissionError as error:
            raise StartupError(
                f"{path} is a socket that this user may not connect to, so the agent cannot find "
                "out whether it is in use; remove it if it is not"
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
        file.path.unlink(missing_ok=True)  # `_require_free` found no server behind it
        umask = os.umask(0o777)
        try:
            sock.bind(os.fspath(file.path))
        finally:
            os.umask(umask)
        _open_to_callers(sock, file, owner, group)
        return sock, _inode(file.path)
    except OSError as error:
        sock.close()
        raise StartupError(
            f"cannot make the socket {file.path}: {error.strerror}{_remedy(error, file)}"
        ) from error


def _remedy(error: OSError, file: SocketFile) -> str:
    changes_owner = file.owner is not None or file.group is not None
    if error.errno != errno.EPERM or not changes_owner:
        return ""
    return (
        "; without root the agent cannot give it to another user, and only to a group of its own: "
        "add the group to SupplementaryGroups= in its unit"
    )


def _open_to_callers(sock: socket.socket, file: SocketFile, owner: int, group: int) -> None:
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
        raise StartupError(f"socket_owner: user {owner!r} does not exist on this host") from error


def group_id(group: str | None) -> int:
    """Return the ID of a group that is given by name or number; -1 for None.

    Raises:
        StartupError: the group does not exist.
    """
    if group is None or group.isdecimal():
        return int(group or -1)
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError as error:
        raise StartupError(
            f"socket_group, admin_socket_group or telemetry.group: group {group!r} does not exist"
            " on this host"
        ) from error
