"""Watch directories with inotify(7), through the C library that the process already has.

No package does this: asyncinotify, inotify and inotify_simple start ldconfig(8) to find the C
library, and other packages are not maintained (docs/decisions/14-entry-watch-thread.md).
"""

from __future__ import annotations

import ctypes
import os
import select
import struct
from contextlib import suppress
from enum import IntFlag
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

_LIBC = ctypes.CDLL(None, use_errno=True)

# One read returns some 500 events. Other users may cause events by the million in a directory that
# they can write to, so that reads must be bounded.
BATCH_BYTES = 16 * 1024
# All that the kernel queues, if names are short (fs.inotify.max_queued_events is 16,384).
QUEUE_BYTES = 1 << 20

# struct inotify_event: watch descriptor, mask, cookie, length of the name behind it.
_EVENT = struct.Struct("iIII")


class Mask(IntFlag):
    """The events that matter here (inotify(7))."""

    MODIFY = 0x2
    ATTRIB = 0x4
    CLOSE_WRITE = 0x8
    MOVED_FROM = 0x40
    MOVED_TO = 0x80
    CREATE = 0x100
    DELETE = 0x200
    DELETE_SELF = 0x400
    MOVE_SELF = 0x800
    Q_OVERFLOW = 0x4000


_CHANGES = sum(Mask) - Mask.Q_OVERFLOW


class Event(NamedTuple):
    """Something happened to a name in a watched directory; no name is the directory itself."""

    directory: Path
    name: str
    mask: int


class Directories:
    """Watches directories, not what lies below them.

    Owns an inotify descriptor and an eventfd, until `close`. For one thread; `interrupt` may be
    called by any. `follow` may block as long as a file system does.
    """

    def __init__(self) -> None:
        self._descriptor = self._wake = -1
        self._watched: dict[int, Path] = {}
        self._lock = Lock()
        self._is_interrupted = False

    @property
    def watched(self) -> frozenset[Path]:
        """The directories being watched."""
        return frozenset(self._watched.values())

    def follow(self, directories: Iterable[Path]) -> None:
        """Watch these directories and no others.

        Raises:
            OSError: one of them cannot be watched, or a limit is reached. None is watched then.
        """
        before = self._watched
        try:
            inotify = self._opened()
            self._watched = {_add_watch(inotify, each): each for each in directories}
        except OSError:
            self.close()
            raise
        for gone in before.keys() - self._watched.keys():
            with suppress(OSError):  # the kernel dropped the watch with its directory
                _call(_LIBC.inotify_rm_watch, inotify, gone)

    def close(self) -> None:
        """Watch nothing. May be called again."""
        with self._lock:
            for descriptor in (self._descriptor, self._wake):
                if descriptor != -1:
                    os.close(descriptor)
            self._descriptor = self._wake = -1
        self._watched = {}

    def interrupt(self) -> None:
        """Have `wait` return, now and from now on."""
        with self._lock:
            self._is_interrupted = True
            if self._wake != -1:
                os.eventfd_write(self._wake, 1)

    def wait(self, seconds: float) -> None:
        """Return when there are events to read, after this time, or when interrupted."""
        poll = select.poll()
        poll.register(self._opened(), select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        if not self._is_interrupted:
            poll.poll(max(0.0, seconds) * 1000)

    def read(self) -> tuple[list[Event], bool]:
        """Return a batch of events, and whether the kernel has lost some."""
        events: list[Event] = []
        is_lossy = False
        for watch, mask, name in self._read(BATCH_BYTES):
            is_lossy |= bool(mask & Mask.Q_OVERFLOW)
            if watch in self._watched:
                events.append(Event(self._watched[watch], name, mask))
        return events, is_lossy

    def discard(self) -> bool:
        """Drop the events so far; return whether there were any."""
        if self._descriptor == -1:
            return False
        try:
            return bool(os.read(self._descriptor, QUEUE_BYTES))
        except BlockingIOError:
            return False

    def _read(self, size: int) -> Iterator[tuple[int, int, str]]:
        try:
            data = os.read(self._opened(), size)
        except BlockingIOError:
            return
        at = 0
        while at < len(data):
            watch, mask, _cookie, length = _EVENT.unpack_from(data, at)
            at += _EVENT.size + length
            yield watch, mask, os.fsdecode(data[at - length : at].rstrip(b"\0"))

    def _opened(self) -> int:
        if self._descriptor == -1:
            self._descriptor = _call(_LIBC.inotify_init1, os.O_NONBLOCK | os.O_CLOEXEC)
            self._wake = os.eventfd(0)
            # If this took the last descriptor, no directory could be listed any more, and every
            # file would seem to be gone.
            os.close(os.dup(self._descriptor))
        return self._descriptor


def _add_watch(inotify: int, directory: Path) -> int:
    return _call(_LIBC.inotify_add_watch, inotify, os.fsencode(directory), _CHANGES)


def _call(function: Callable[..., int], *arguments: int | bytes) -> int:
    result = function(*arguments)
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
