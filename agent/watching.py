"""Changes of operators' entry files: notices them, and says when they have settled.

* The kernel tells of changes in directories (inotify). What matters lies in several of them: the
  files, every symbolic link on the way to them, and whatever exists of a way that ends early.
* A change may make any of these another directory. So every burst ends the watch, and the next
  one begins before the burst is reported: whoever reads the files then misses nothing.
* What the kernel does not tell (network file systems, mounts, a renamed parent) is found by a
  glance every two seconds. Where nothing can be watched, the glance is all there is.
* Files are reported when nobody writes them any more, and git has finished its work.

A report means "read everything again". That nothing changed after all is possible and harmless.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import signal
import stat
from contextlib import closing, nullcontext
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from inotify_simple import Event, INotify, flags, masks

from agent.files import SUFFIXES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence

    from structlog.typing import FilteringBoundLogger

    _Found = Path | os.DirEntry[str]

# A burst is over when nothing more happened for this long.
STEP_SECONDS = 0.02
# The longest burst, should there be no end to them.
LONGEST_BURST_SECONDS = 1.0
GLANCE_SECONDS = 2.0
RETRY_SECONDS = 5.0
# How long files may be at work before somebody is told, and how often they are looked at from then.
PATIENCE_SECONDS = 5.0
SLOW_POLL_SECONDS = 1.0
# As many as the kernel follows (path_resolution(7)).
MAX_LINKS = 40

_CHANGES = (
    flags.CREATE
    | flags.DELETE
    | flags.DELETE_SELF
    | masks.MOVE
    | flags.MOVE_SELF
    | flags.MODIFY
    | flags.CLOSE_WRITE
    | flags.ATTRIB
)
# What the kernel says of a limit would be taken for a full disk.
_LIMITS = {
    errno.ENOSPC: "too many watched directories (fs.inotify.max_user_watches)",
    errno.EMFILE: "too many open files, or inotify instances (fs.inotify.max_user_instances)",
}


class FileWatch:
    """Watches entry files, and directories of them, whether they exist yet or not.

    Make it before the files are first read: a change from then on is reported.
    """

    def __init__(self, paths: Sequence[Path], log: FilteringBoundLogger) -> None:
        self._paths = tuple(path.absolute() for path in paths)
        self._log = log
        self._first = _look(self._paths)
        self._told = False

    async def changes(self) -> AsyncIterator[None]:
        """Yield once per burst of changes when it has settled, for ever."""
        seen, changed = self._first, False
        while True:
            await self._settle()
            view = _look(self._paths)
            watch = self._watch(view)
            with closing(watch) if watch else nullcontext():
                if changed or view != seen:
                    yield
                seen = view
                changed = await self._next_burst(watch, view)

    def _watch(self, view: _View) -> _Watch | None:
        """Begin to watch, or say why that is impossible."""
        try:
            return _Watch(each for each in view.directories if os.access(each, os.R_OK))
        except OSError as error:
            if _look(self._paths) == view:  # else a directory went meanwhile, and we look again
                self._warn(error)
            return None

    def _warn(self, error: OSError) -> None:
        if not self._told:
            self._log.warning(
                "entry files cannot be watched",
                reason=_LIMITS.get(error.errno or 0, str(error)),
                advice=f"they are looked at every {RETRY_SECONDS:g} s; SIGHUP reloads them at once",
            )
        self._told = True

    async def _next_burst(self, watch: _Watch | None, view: _View) -> bool:
        """Wait for the end of a burst, or until it is time to try again. Was there one?"""
        if watch is not None:
            await self._watched_burst(watch, view)
            return True
        await asyncio.sleep(RETRY_SECONDS if self._told else STEP_SECONDS)
        return False

    async def _watched_burst(self, watch: _Watch, view: _View) -> None:
        # The first glance is for what happened after the look and before the watch began.
        glance = STEP_SECONDS
        self._told = False
        while True:
            found = await watch.burst(glance)
            if any(map(view.concerns, found)) or (not found and _look(self._paths) != view):
                return
            glance = GLANCE_SECONDS

    async def _settle(self) -> None:
        """Return when the files are settled; if they were not at first, then for a step."""
        now = asyncio.get_running_loop().time
        patient_until = now() + PATIENCE_SECONDS
        told = at_work = False
        while (reason := unsettled(self._paths)) or at_work:
            at_work = reason is not None
            patient = now() < patient_until
            if at_work and not patient and not told:
                self._log.warning("entries not reloaded yet", reason=reason)
                told = True
            await asyncio.sleep(STEP_SECONDS if patient or not at_work else SLOW_POLL_SECONDS)


def watched_directories(paths: Iterable[Path]) -> frozenset[Path]:
    """The existing directories in which a change may be one of what `paths` mean."""
    return _look(path.absolute() for path in paths).directories


def unsettled(paths: Sequence[Path]) -> str | None:
    """Why these files should not be read just now, in plain words; None if they may be.

    A writer is seen by root, by the files' owner and on file systems with leases; git by everybody.
    """
    for path in map(Path.absolute, paths):
        inside = _inside(path)
        for place in {place for way in _ways(path, inside) for place in _places(way)}:
            if (lock := _git_lock(place)) and _status(lock):
                return f"git is at work: {lock} exists"
        files: list[_Found] = [path, *inside]
        for file in files:
            if _is_being_written(file):
                return f"{os.fspath(file)} is open for writing"
    return None


@dataclass(frozen=True, slots=True)
class _View:
    """What was to be seen at one moment."""

    directories: frozenset[Path]
    names: frozenset[Path]
    """Links, places where they lead, and all directories above: whatever may move the files."""
    files: Mapping[str, tuple[int, ...]]
    """Of each file and directory what differs if its content does."""

    def concerns(self, place: Path) -> bool:
        return place in self.names or _is_source(place.name)


def _look(paths: Iterable[Path]) -> _View:
    directories: set[Path] = set()
    names: set[Path] = set()
    files: dict[str, tuple[int, ...]] = {}
    for path in paths:
        inside = _inside(path)
        for way in _ways(path, inside):
            *links, end = _places(way)
            directories |= {link.parent for link in links} | {_nearest_directory(end)}
            names |= {above for place in (*links, end) for above in (place, *place.parents)}
        files |= {each.path: _identity(each) for each in inside}
        files[str(path)] = _identity(path)
    return _View(frozenset(directories), frozenset(names), files)


def _inside(path: Path) -> list[os.DirEntry[str]]:
    """The files that are read if this is a directory, as `agent.files` chooses them."""
    try:
        with os.scandir(path) as inside:
            return [each for each in inside if _is_source(each.name)]
    except OSError:
        return []


def _is_source(name: str) -> bool:
    return name.endswith(tuple(SUFFIXES)) and not name.startswith(".")


def _ways(path: Path, inside: Iterable[os.DirEntry[str]]) -> Iterator[Path]:
    """The path, and the files inside it that lie somewhere else."""
    yield path
    yield from (Path(each) for each in inside if each.is_symlink())


def _places(path: Path) -> Iterator[Path]:
    """Where each symbolic link on the way lies; then where the way ends, whether that exists."""
    ahead = [*reversed(path.parts)]
    here = Path("/")
    links = 0
    while ahead:
        name = ahead.pop()
        here = here.parent if name == ".." else here / name
        if (target := _target(here)) and links < MAX_LINKS:
            yield here
            links += 1
            here = here.parent
            ahead += reversed(target.parts)
    yield here


def _target(path: Path) -> Path | None:
    try:
        return path.readlink()
    except OSError:
        return None


def _nearest_directory(path: Path) -> Path:
    return next(each for each in (path, *path.parents) if _is_directory(each))


def _is_directory(path: Path) -> bool:
    status = _status(path)
    return status is not None and stat.S_ISDIR(status.st_mode)


def _identity(path: _Found) -> tuple[int, ...]:
    status = _status(path)
    if status is None:
        return ()
    if stat.S_ISDIR(status.st_mode):
        return (status.st_dev, status.st_ino)
    return (status.st_dev, status.st_ino, status.st_size, status.st_ctime_ns)


def _status(path: _Found) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None


class _Watch:
    """Has the kernel tell what happens in directories. Owns inotify's descriptor, until `close`.

    Raises:
        OSError: one of them cannot be watched, or a limit is reached (inotify(7)).
    """

    def __init__(self, directories: Iterable[Path]) -> None:
        self._inotify = INotify(nonblocking=True)
        try:
            self._directories = {
                self._inotify.add_watch(each, _CHANGES): each for each in directories
            }
            # If this took the last descriptor, every glance would find that all files are gone.
            os.close(os.dup(self._inotify.fileno()))
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        self._inotify.close()

    async def burst(self, seconds: float) -> set[Path]:
        """What changes in one burst, if one begins within so many seconds."""
        found: set[Path] = set()
        more = await self._readable(seconds)
        now = asyncio.get_running_loop().time
        end = now() + LONGEST_BURST_SECONDS
        while more:
            found.update(chain.from_iterable(map(self._places, self._inotify.read(timeout=0))))
            more = now() < end and await self._readable(STEP_SECONDS)
        return found

    async def _readable(self, seconds: float) -> bool:
        loop, ready = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(self._inotify, ready.set)
        try:
            async with asyncio.timeout(seconds):
                return await ready.wait()
        except TimeoutError:
            return False
        finally:
            loop.remove_reader(self._inotify)

    def _places(self, event: Event) -> Iterable[Path]:
        if event.mask & flags.Q_OVERFLOW:
            return self._directories.values()  # whatever it was that the kernel lost
        return (self._directories[event.wd] / event.name,)


def _is_being_written(path: _Found) -> bool:
    """Whether a process has the file open for writing: then the kernel refuses a lease for reading.

    If it refuses for another reason, or the file cannot be opened, nobody can tell.
    """
    status = _status(path)
    if status is None or not stat.S_ISREG(status.st_mode):
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
    """The file that git keeps while it changes the work tree around `place`, if that is in one."""
    for above in (place, *place.parents):
        inside = above / ".git"
        if _is_directory(inside):
            return inside / "index.lock"
        if _status(inside):
            return above / _pointed_to(inside) / "index.lock"
    return None


def _pointed_to(file: Path) -> str:
    """The directory of a work tree that is not the repository's first (gitrepository-layout(5))."""
    try:
        return file.read_text(encoding="utf-8").removeprefix("gitdir:").strip()
    except (OSError, UnicodeError):
        return ""
