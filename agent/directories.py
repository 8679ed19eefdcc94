"""What happens in directories, as the kernel tells it (inotify(7))."""

from __future__ import annotations

import asyncio
import ctypes
import os
from contextlib import suppress
from typing import TYPE_CHECKING

import inotify_simple
from inotify_simple import INotify, flags, masks, parse_events

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

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
