"""The data directory: private, ours alone, and never half-written.

Rules:

* the directory is 0700 and its files 0600, all owned by the agent's user; what is looser, or
  somebody else's, is an error and stays as it is;
* a file is replaced as a whole: written beside, fsynced, renamed over, and the directory fsynced,
  so that after a power cut there is the old content or the new, never a mixture; what is `spooled`
  or `appended` is meant to be lost in a power cut, and cheap;
* a lock makes sure that one agent uses the directory at a time.

It stores bytes and does not know what they mean.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from contextlib import suppress
from itertools import takewhile
from typing import TYPE_CHECKING

from agent.errors import StartupError, with_remedy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
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
            _make_directory(directory)
            self._descriptor = os.open(
                directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW
            )
        except OSError as error:
            reason = "it is a symbolic link" if directory.is_symlink() else with_remedy(error)
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

    def read(self, name: str, limit: int = MAX_FILE_BYTES) -> bytes | None:
        """The whole of a file; None if there is none.

        Raises:
            KeystoreError: it is no private regular file of ours, larger than `limit`, or
                unreadable.
        """
        path = self.directory / name
        try:
            descriptor = os.open(
                name,
                os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK,
                dir_fd=self._descriptor,
            )
            try:
                _require_plain(os.fstat(descriptor), path, limit)
                with os.fdopen(descriptor, "rb", closefd=False) as file:
                    return file.read(limit)
            finally:
                os.close(descriptor)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise KeystoreError(f"cannot read {path}: {_reason(error)}") from error

    def write(self, name: str, content: bytes) -> None:
        """Replace a file. When this returns, the content survives a power cut.

        Raises:
            KeystoreError: it could not be written; what was there before is still there.
        """
        self._replace(name, (content,), os.fsync)
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise KeystoreError(
                f"cannot tell whether {self.directory / name} would survive a power cut: "
                f"{_reason(error)}"
            ) from error

    def spool(self, name: str, chunks: Iterable[bytes]) -> None:
        """Replace a file that is of no use after a power cut, which may leave anything in it.

        Raises:
            KeystoreError: it could not be written; what was there before is still there.
        """
        self._replace(name, chunks, _leave_to_the_kernel)

    def append(self, name: str, chunks: Iterable[bytes]) -> None:
        """Add to a file that was spooled.

        Raises:
            KeystoreError: there is no such file, or not all could be written; a part may be there.
        """
        flags = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            with os.fdopen(os.open(name, flags, dir_fd=self._descriptor), "wb") as file:
                file.writelines(chunks)
        except OSError as error:
            raise KeystoreError(
                f"cannot write {self.directory / name}: {_reason(error)}"
            ) from error

    def remove(self, name: str) -> None:
        """Remove a file, if it is there.

        Raises:
            KeystoreError: it cannot be removed.
        """
        try:
            self._discard(name)
        except OSError as error:
            raise KeystoreError(
                f"cannot remove {self.directory / name}: {_reason(error)}"
            ) from error

    def _replace(self, name: str, chunks: Iterable[bytes], sync: Callable[[int], None]) -> None:
        temporary = f".{name}.new"
        try:
            self._write_beside(temporary, chunks, sync)
            os.rename(temporary, name, src_dir_fd=self._descriptor, dst_dir_fd=self._descriptor)
        except OSError as error:
            with suppress(OSError):
                self._discard(temporary)
            raise KeystoreError(
                f"cannot write {self.directory / name}: {_reason(error)}; nothing was changed"
            ) from error

    def _write_beside(
        self, name: str, chunks: Iterable[bytes], sync: Callable[[int], None]
    ) -> None:
        self._discard(name)  # left by a crash
        descriptor = os.open(
            name,
            os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW,
            0o600,
            dir_fd=self._descriptor,
        )
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, 0o600)  # whatever the umask is
            file.writelines(chunks)
            file.flush()
            sync(descriptor)

    def _discard(self, name: str) -> None:
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self._descriptor)


def _leave_to_the_kernel(_descriptor: int) -> None:
    """Whenever the kernel likes to write it is soon enough."""


def _make_directory(directory: Path) -> None:
    """Make what is missing of the path; a power cut must not take it away with what is inside."""
    above = (directory, *directory.parents)
    for each in reversed(list(takewhile(lambda path: not path.exists(), above))):
        each.mkdir(mode=0o700 if each == directory else 0o777, exist_ok=True)
        with suppress(PermissionError):  # one may be allowed to write to it, and not to read it
            parent = os.open(each.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(parent)
            finally:
                os.close(parent)


def _lock(descriptor: int, directory: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise KeystoreError(
            f"another agent uses the data directory {directory}; "
            "stop it, or choose another data_dir"
        ) from error


def _require_plain(status: os.stat_result, path: Path, limit: int) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise KeystoreError(f"{path} is not a regular file; it was left untouched")
    _require_private(status, str(path), "0600")
    if status.st_size > limit:
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
    return with_remedy(error)
