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
import errno
import os
from contextlib import closing
from typing import TYPE_CHECKING

from agent.directories import Directories
from agent.entry_places import View, look
from agent.settling import unsettled

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence
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
