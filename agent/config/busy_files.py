"""Whether entry files are settled: nobody writes them, and git has finished its work."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from agent.config.watched_paths import Found, inside, is_directory, places, status, ways

if TYPE_CHECKING:
    from collections.abc import Sequence

# The longest path that the kernel takes (path_resolution(7)).
_PATH_MAX = 4096


def unsettled(paths: Sequence[Path], *, heeds_git: bool = True) -> str | None:
    """Why these files should not be read just now, in plain words; None if they may be.

    A writer is seen by root, by the files' owner and on file systems with leases; git by everybody.
    """
    for path in map(Path.absolute, paths):
        within = inside(path)
        if heeds_git:
            for place in {place for way in ways(path, within) for place in places(way)}:
                if (lock := _git_lock(place)) and status(lock):
                    return f"git is at work: {lock} exists"
        files: list[Found] = [path, *within]
        for file in files:
            if _is_being_written(file):
                return f"{os.fspath(file)} is open for writing"
    return None


def _is_being_written(path: Found) -> bool:
    """Whether a process has the file open for writing: then the kernel refuses a lease for reading.

    If it refuses for another reason, or the file cannot be opened, nobody can tell.
    """
    found = status(path)
    if found is None or not stat.S_ISREG(found.st_mode):
        return False
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        # Who opens the file in this moment is let in by the unlocking, and we get a signal. It
        # must be one that is ignored: SIGIO, which it is by default, would end the process.
        fcntl.fcntl(file, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError as error:
        return error.errno == errno.EAGAIN
    finally:
        os.close(file)
    return False


def _git_lock(place: Path) -> Path | None:
    """The file that git keeps while it changes the work tree around `place`, if that is in one.

    Somebody else may have made a `.git` in a directory above, such as /srv/shared: whoever may not
    change the files may not keep them from being read either.
    """
    trusted = _who_may_change(place)
    for above in (place, *place.parents):
        git = above / ".git"
        if _owner(git) not in trusted:
            continue
        if is_directory(git):
            return git / "index.lock"
        return above / _pointed_to(git) / "index.lock"
    return None


def _who_may_change(place: Path) -> set[int]:
    found = status(place) or status(place.parent)
    return {0, os.geteuid()} | ({found.st_uid} if found else set())


def _owner(path: Path) -> int | None:
    try:
        return path.lstat().st_uid
    except OSError:
        return None


def _pointed_to(file: Path) -> str:
    """The directory of a work tree that is not the repository's first (gitrepository-layout(5))."""
    try:
        with open(file, "rb", opener=_open_at_once) as content:
            return os.fsdecode(content.read(_PATH_MAX)).removeprefix("gitdir:").strip()
    except OSError:
        return ""


def _open_at_once(path: str, flags: int) -> int:
    # A FIFO must not hang the event loop.
    return os.open(path, flags | os.O_NONBLOCK)
