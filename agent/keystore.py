"""The data directory: private, ours alone, and never half-written.

Rules:

* the directory is 0700 and its files 0600, all owned by the agent's user; what is looser, or
  somebody else's, is an error and stays as it is;
* a file is replaced as a whole: written beside, fsynced, renamed over, and the directory fsynced,
  so that after a power cut there is the old content or the new, never a mixture;
* a lock makes sure that one agent uses the directory at a time.

It stores bytes and does not know what they mean.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from contextlib import suppress
from typing import TYPE_CHECKING

from agent.errors import StartupError

if TYPE_CHECKING:
    from pathlib import Path

# What is kept here is a few keys and certificates; more is damage, or somebody's joke.
MAX_FILE_BYTES = 1 << 20


class KeystoreError(StartupError):
    """The data directory, or a file in it, cannot be trusted or used."""


class Keystore:
    """Owns the data directory's descriptor and its lock.

    Raises:
        KeystoreError: it cannot be made, is not private, is not ours, or is in use.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._descriptor = os.open(
                directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW
            )
        except OSError as error:
            reason = "it is a symbolic link" if directory.is_symlink() else error.strerror
            raise KeystoreError(
                f"cannot use the data directory {directory}: {reason}; "
                "choose another data_dir or start as a user who may"
            ) from error
        try:
            _require_private(os.fstat(self._descriptor), str(directory), "0700")
            _lock(self._descriptor, directory)
        except BaseException:
            os.close(self._descriptor)
            raise

    def close(self) -> None:
        """Give the directory up to the next agent."""
        os.close(self._descriptor)

    def read(self, name: str) -> bytes | None:
        """The whole of a file; None if there is none.

        Raises:
            KeystoreError: it is no private regular file of ours, too large, or unreadable.
        """
        path = self.directory / name
        try:
            descriptor = os.open(
                name,
                os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK,
                dir_fd=self._descriptor,
            )
        except FileNotFoundError:
            return None
        except OSError as error:
            raise KeystoreError(f"cannot read {path}: {_reason(error)}") from error
        try:
            _require_plain(os.fstat(descriptor), path)
            return os.read(descriptor, MAX_FILE_BYTES)
        finally:
            os.close(descriptor)

    def write(self, name: str, content: bytes) -> None:
        """Replace a file. When this returns, the content survives a power cut.

        Raises:
            KeystoreError: it could not be written; what was there before is still there.
        """
        temporary = f".{name}.new"
        try:
            self._write_synced(temporary, content)
            os.rename(temporary, name, src_dir_fd=self._descriptor, dst_dir_fd=self._descriptor)
            os.fsync(self._descriptor)
        except OSError as error:
            with suppress(OSError):
                self._discard(temporary)
            raise KeystoreError(
                f"cannot write {self.directory / name}: {_reason(error)}; the old content is kept"
            ) from error

    def _write_synced(self, name: str, content: bytes) -> None:
        self._discard(name)  # left by a crash
        descriptor = os.open(
            name,
            os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW,
            0o600,
            dir_fd=self._descriptor,
        )
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, 0o600)  # whatever the umask is
            file.write(content)
            file.flush()
            os.fsync(descriptor)

    def _discard(self, name: str) -> None:
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self._descriptor)


def _lock(descriptor: int, directory: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise KeystoreError(
            f"another agent uses the data directory {directory}; "
            "stop it, or choose another data_dir"
        ) from error


def _require_plain(status: os.stat_result, path: Path) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise KeystoreError(f"{path} is not a regular file; it was left untouched")
    _require_private(status, str(path), "0600")
    if status.st_size > MAX_FILE_BYTES:
        raise KeystoreError(
            f"{path} has {status.st_size} bytes, which vouchd never writes; "
            "restore it from a backup or move it away"
        )


def _require_private(status: os.stat_result, path: str, mode: str) -> None:
    if status.st_uid != os.geteuid():
        raise KeystoreError(
            f"{path} belongs to user {status.st_uid}, not to the agent's user {os.geteuid()}; "
            f"start as user {status.st_uid}, or move it away; nothing was read or changed"
        )
    permissions = stat.S_IMODE(status.st_mode)
    if permissions & 0o077:
        raise KeystoreError(
            f"{path} is open to other users (mode {permissions:04o}); "
            f"find out who could have read it, then chmod {mode} {path}"
        )


def _reason(error: OSError) -> str:
    if error.errno == errno.ELOOP:
        return "it is a symbolic link"
    return error.strerror or str(error)
