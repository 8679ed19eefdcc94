"""The data directory: private to one agent, and consistent after a power cut.

* The directory has mode 0700 and its files 0600; the agent's user owns all. Looser modes and other
  owners are errors, and the files stay as they are.
* `write` replaces a file as a whole: a temporary file is written and fsynced, then renamed, then
  the directory is fsynced. A power cut leaves the old content or the new, never a mixture.
* `write_unsynced` and `append` skip every fsync: cheap, for files that a power cut may damage.
* A lock (flock(2)) keeps a second agent out of the directory.

The content is bytes. `agent.authority.embedded` writes authority.json, `agent.svids.disk_cache` the
cache of SVIDs and its key.
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

# The files hold a few keys and certificates. A larger file is damaged or not ours.
MAX_FILE_BYTES = 1 << 20


class KeystoreError(StartupError):
    """The data directory, or a file in it, is not private or cannot be used."""


class Keystore:
    """The data directory. Owns its descriptor and its lock; `close` releases both.

    Raises:
        KeystoreError: the directory cannot be created, is not private, has another owner, or
            another agent uses it.
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
                "choose another data_dir, or give the agent's user access to it"
            ) from error
        try:
            _require_private(os.fstat(self._descriptor), str(directory), "0700")
            _lock(self._descriptor, directory)
        except BaseException:
            os.close(self._descriptor)
            raise

    def close(self) -> None:
        """Release the directory to the next agent."""
        os.close(self._descriptor)

    def read(self, name: str, limit: int = MAX_FILE_BYTES) -> bytes | None:
        """Read a whole file; None if there is none.

        Args:
            name: of the file in the data directory.
            limit: the largest size that is read, in bytes.

        Raises:
            KeystoreError: the file is not a private regular file of the agent's user, is larger
                than `limit`, or cannot be read.
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
            KeystoreError: the write failed. The former content is still there, unless the message
                says that this is unknown.
        """
        self._replace(name, (content,), os.fsync)
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise KeystoreError(
                f"{self.directory / name} was replaced, but may be lost in a power cut: "
                f"{_reason(error)}"
            ) from error

    def write_unsynced(self, name: str, chunks: Iterable[bytes]) -> None:
        """Replace a file without fsync: a power cut may leave anything in it.

        Raises:
            KeystoreError: the write failed; the former content is still there.
        """
        self._replace(name, chunks, _no_sync)

    def append(self, name: str, chunks: Iterable[bytes]) -> None:
        """Add to a file without fsync.

        Raises:
            KeystoreError: there is no such file, or the write failed; a part may be written.
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
        """Remove a file, if there is one.

        Raises:
            KeystoreError: the file cannot be removed.
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


def _no_sync(_descriptor: int) -> None:
    """Leave the write to the kernel."""


def _make_directory(directory: Path) -> None:
    """Create the missing directories of a path, each synced: it survives a power cut."""
    above = (directory, *directory.parents)
    for each in reversed(list(takewhile(lambda path: not path.exists(), above))):
        each.mkdir(mode=0o700 if each == directory else 0o777, exist_ok=True)
        with suppress(PermissionError):  # a directory may be writable without being readable
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
            f"another agent uses the data directory {directory}: "
            "stop it, or choose another data_dir"
        ) from error


def _require_plain(status: os.stat_result, path: Path, limit: int) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise KeystoreError(f"{path} is not a regular file: move it away")
    _require_private(status, str(path), "0600")
    if status.st_size > limit:
        raise KeystoreError(
            f"{path} has {status.st_size} bytes, more than vouchd ever writes: "
            "restore it from a backup, or move it away"
        )


def _require_private(status: os.stat_result, path: str, mode: str) -> None:
    if status.st_uid != os.geteuid():
        raise KeystoreError(
            f"{path} belongs to user {status.st_uid}, not to the agent's user {os.geteuid()}: "
            f"start vouchd as user {status.st_uid}, or move it away"
        )
    permissions = stat.S_IMODE(status.st_mode)
    if permissions & 0o077:
        raise KeystoreError(
            f"other users have access to {path} (mode {permissions:04o}): "
            f"check whether its keys were read, then chmod {mode} {path}"
        )


def _reason(error: OSError) -> str:
    if error.errno == errno.ELOOP:
        return "it is a symbolic link"
    return with_remedy(error)
