"""Changes of operators' entry files: notices them, and says when they have settled.

* The kernel tells of changes in directories (inotify). A change may make any of these another
  directory. So after every burst the files are looked for anew, and watched where they are now
  before the burst is reported: whoever reads the files then misses nothing.
* What the kernel does not tell (network file systems, mounts, a renamed parent), or could not amid
  all that happened, is found by a glance every two seconds. Where nothing can be watched, the
  glance is all there is.
* Files are reported when nobody writes them any more, and git has finished its work.

A report means "read everything again". That nothing changed after all is possible and harmless.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
from contextlib import closing, suppress
from typing import TYPE_CHECKING

import inotify_simple
from inotify_simple import INotify, flags, masks, parse_events

from agent.config.busy_files import unsettled
from agent.config.watched_paths import View, look

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable, Sequence
    from pathlib import Path

    from structlog.typing import FilteringBoundLogger

# A burst is over when nothing more happened for this long.
STEP_SECONDS = 0.02
# The longest burst, should there be no end to them.
LONGEST_BURST_SECONDS = 1.0
GLANCE_SECONDS = 2.0
RETRY_SECONDS = 5.0
# How long files may be at work before somebody is told, and how often they are looked at from then.
PATIENCE_SECONDS = 5.0
SLOW_POLL_SECONDS = 1.0
# No git works so long on files that matter here: it has crashed, and left its lock.
GIT_SECONDS = 60.0

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
        self._seen = look(self._paths)
        self._told = False

    async def changes(self) -> AsyncGenerator[None, None]:
        """Yield once per burst of changes when it has settled, for ever."""
        changed = False
        with closing(Directories()) as directories:
            while True:
                await self._settle()
                directories.forget()  # what the look sees
                view = look(self._paths)
                is_watched = self._follow(directories, view)
                if changed or view != self._seen:
                    yield
                self._seen = view
                changed = await (self._burst(directories, view) if is_watched else self._pause())

    def _follow(self, directories: Directories, view: View) -> bool:
        """Watch where the files are now, or say why that is impossible."""
        try:
            directories.follow(each for each in view.directories if os.access(each, os.R_OK))
        except OSError as error:
            if look(self._paths) == view:  # else a directory went meanwhile, and we look again
                self._warn(error)
            return False
        self._told = False
        return True

    def _warn(self, error: OSError) -> None:
        if not self._told:
            self._log.warning(
                "entry files cannot be watched",
                reason=_LIMITS.get(error.errno or 0, str(error)),
                advice=f"they are looked at every {RETRY_SECONDS:g} s; SIGHUP reloads them at once",
            )
        self._told = True

    async def _pause(self) -> bool:
        """Wait until it is time to try again. Nobody was told of a burst."""
        await asyncio.sleep(RETRY_SECONDS if self._told else STEP_SECONDS)
        return False

    async def _burst(self, directories: Directories, view: View) -> bool:
        """Wait for a burst of changes and its end. Was there one, or does it only look like it?"""
        now = asyncio.get_running_loop().time
        # The first look is for what happened after the last one and before the watch began.
        look_at = now() + STEP_SECONDS
        while True:
            await directories.wait(look_at - now())
            has_changed, was_lost = self._read(directories, view)
            if has_changed:
                await self._end(directories, view)
                return True
            if was_lost or now() >= look_at:
                if look(self._paths) != view:
                    return False
                look_at = now() + GLANCE_SECONDS
            # One who makes events without end has the loop read few of them.
            await asyncio.sleep(STEP_SECONDS)

    async def _end(self, directories: Directories, view: View) -> None:
        now = asyncio.get_running_loop().time
        end = now() + LONGEST_BURST_SECONDS
        while now() < end:
            await asyncio.sleep(STEP_SECONDS)
            if not any(self._read(directories, view)):
                break

    def _read(self, directories: Directories, view: View) -> tuple[bool, bool]:
        """Whether something has changed that matters; whether something was lost that may."""
        found, was_lost = directories.read()
        return any(view.concerns(*each) for each in found), was_lost

    async def _settle(self) -> None:
        """Return when the files are settled; if they were not at first, then for a step."""
        now = asyncio.get_running_loop().time
        began = now()
        told = at_work = False
        while (reason := self._unsettled(now() - began)) or at_work:
            at_work = reason is not None
            patient = now() - began < PATIENCE_SECONDS
            if at_work and not patient and not told:
                self._log.warning("entries not reloaded yet", reason=reason)
                told = True
            await asyncio.sleep(STEP_SECONDS if patient or not at_work else SLOW_POLL_SECONDS)

    def _unsettled(self, seconds: float) -> str | None:
        return unsettled(self._paths, heeds_git=seconds < GIT_SECONDS)


# It is in this process already. The library would run ldconfig(8), and gcc(1), to find it.
inotify_simple._libc = ctypes.CDLL(None, use_errno=True)  # noqa: SLF001

# Read at a time: some 500 events, two milliseconds of the loop. Whoever may write in one of the
# directories can make them by the million.
BATCH_BYTES = 16 * 1024
# As much as the kernel keeps, if names are short (fs.inotify.max_queued_events is 16,384).
FORGOTTEN_BYTES = 1 << 20

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


class Directories:
    """Watches some directories, not what lies below them. Owns inotify's descriptor, until `close`.

    There is one for as long as somebody watches: to close it takes the kernel ten milliseconds.
    """

    def __init__(self) -> None:
        self._inotify: INotify | None = None
        self._watched: dict[int, Path] = {}

    def follow(self, directories: Iterable[Path]) -> None:
        """Watch these from now on, and no others.

        Raises:
            OSError: one of them cannot be watched, or a limit is reached. None is watched then.
        """
        before = self._watched
        try:
            inotify = self._opened()
            self._watched = {inotify.add_watch(each, _CHANGES): each for each in directories}
        except OSError:
            self.close()
            raise
        for gone in before.keys() - self._watched.keys():
            with suppress(OSError):  # the directory itself is gone
                inotify.rm_watch(gone)

    def close(self) -> None:
        """Watch none. It may be asked to again."""
        if self._inotify is not None:
            self._inotify.close()
            self._inotify = None
        self._watched = {}

    async def wait(self, seconds: float) -> None:
        """Return when something has happened, or after so many seconds."""
        loop, ready = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(self._opened(), ready.set)
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await ready.wait()
        finally:
            loop.remove_reader(self._opened())

    def read(self) -> tuple[list[tuple[Path, str]], bool]:
        """Some of what has happened, as directory and name; and whether something was lost.

        No name means the directory itself.
        """
        try:
            events = parse_events(os.read(self._opened().fileno(), BATCH_BYTES))
        except BlockingIOError:
            return [], False
        found = [(self._watched[e.wd], e.name) for e in events if e.wd in self._watched]
        return found, any(e.mask & flags.Q_OVERFLOW for e in events)

    def forget(self) -> None:
        """Pass over what has happened so far, or very much of it."""
        if self._inotify is not None:
            with suppress(BlockingIOError):
                os.read(self._inotify.fileno(), FORGOTTEN_BYTES)

    def _opened(self) -> INotify:
        if self._inotify is None:
            self._inotify = INotify(nonblocking=True)
            # If this took the last descriptor, every look would find that all files are gone.
            os.close(os.dup(self._inotify.fileno()))
        return self._inotify
