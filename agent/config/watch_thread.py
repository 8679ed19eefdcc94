"""Wait for settled changes of entry files, in a daemon thread that a hung file system may block.

* inotify reports changes in directories. A change may move the files to other directories, so after
  each burst of events the thread looks for the files anew, watches where they are now, and only
  then reports the change: files that are read after a report are watched already.
* Changes that inotify does not report (network file systems, mounts, a renamed parent, a queue
  overflow) are found by a look every two seconds. Without inotify, that look is all there is.
* Debounce: a change is reported when no event came for 20 ms, every file that was written is
  closed, and a file that went has had a second to come back (editors, git and copies replace files
  in two steps). Each of these waits is bounded.
"""

from __future__ import annotations

import errno
import os
import time
from contextlib import closing, contextmanager
from dataclasses import dataclass
from enum import Enum, auto
from threading import Event, Thread
from typing import TYPE_CHECKING, TypeAlias

from agent.config.inotify import Directories, Mask
from agent.config.watched_paths import View, look

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from agent.config.inotify import Event as FileEvent

# The text of these error numbers would name a full disk, or not say which limit is meant.
_LIMITS = {
    errno.ENOSPC: "too many watched directories (fs.inotify.max_user_watches)",
    errno.EMFILE: "too many open files, or inotify instances (fs.inotify.max_user_instances)",
}
_WRITING = Mask.MODIFY
_WRITTEN = Mask.CLOSE_WRITE | Mask.DELETE | Mask.MOVED_FROM | Mask.MOVED_TO
# Bursts of other files' events that are read without a pause, between two looks. An edit begins
# with one: the file that is then renamed to the entry file.
_AT_ONCE = 4
_now = time.monotonic


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchTimes:
    """How long a watch waits, in seconds."""

    debounce: float = 0.02
    """Without an event, before a burst counts as over."""
    longest_burst: float = 1.0
    """For the end of a burst whose events do not stop."""
    writer: float = 60.0
    """For a file to be closed; a process that holds it open longer is no editor."""
    replacement: float = 1.0
    """For a file that went to come back."""
    look: float = 2.0
    """Between looks for changes that inotify does not report."""
    retry: float = 5.0
    """Between looks where inotify does not work."""
    warn: float = 5.0
    """Before the log names the cause of a delay."""


class Signal(Enum):
    """A report of the watch to the event loop."""

    LOOKED = auto()
    """The files have been looked at for the first time."""
    CHANGED = auto()
    """The files have changed: read all of them again. A report without a change is harmless."""


@dataclass(frozen=True, slots=True)
class Unwatchable:
    """inotify does not work for these files."""

    reason: str


@dataclass(frozen=True, slots=True)
class Delay:
    """Why a watch makes no progress, and since when (monotonic seconds)."""

    reason: str
    since: float


Message: TypeAlias = "Signal | Unwatchable | Exception"


class WatchThread:
    """Watches entry files and directories of them, whether they exist yet or not.

    Args:
        paths: absolute paths of the files and directories.
        times: how long to wait.
        report_first: whether the first look is a change: the files may have been read before it.
        post: called in the thread with each message; an exception is the last one.
        look: examines the files; may block.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        times: WatchTimes,
        *,
        report_first: bool,
        post: Callable[[Message], None],
        look: Callable[[Sequence[Path]], View] = look,
    ) -> None:
        self.delay: Delay | None = None
        self._paths = paths
        self._times = times
        self._post = post
        self._examine = look
        self._is_due = report_first
        self._seen: View | None = None
        self._lost_since: float | None = None
        self._warned = False
        self._writers: dict[Path, float] = {}
        self._stopped = Event()
        self._directories = Directories()

    def start(self) -> None:
        """Start the thread."""
        Thread(target=self._run, name="entry watch", daemon=True).start()

    def stop(self) -> None:
        """Have the thread end, at once or when the file system answers."""
        self._stopped.set()
        self._directories.interrupt()

    def _run(self) -> None:
        try:
            with closing(self._directories):
                while not self._stopped.is_set():
                    self._round()
        except Exception as error:  # noqa: BLE001 - raised on the event loop
            self._post(error)

    def _round(self) -> None:
        """Look at the files, report a settled change, and wait for the next."""
        self._drain()
        view, watched_before = self._look(), self._directories.watched
        is_watched = self._follow(view)
        is_first = self._seen is None
        self._is_due |= not is_first and view != self._seen
        if self._is_due:
            if not is_first and not self._is_settled(view, watched_before):
                return
            self._post(Signal.CHANGED)
        if is_first:
            self._post(Signal.LOOKED)
        self._seen, self._is_due, self._lost_since = view, False, None
        if is_watched:
            self._wait_for_change(view)
        else:
            self._stopped.wait(self._times.retry if self._warned else self._times.debounce)

    def _drain(self) -> None:
        """Drop the events so far: the look sees their result."""
        if self._seen is not None and self._directories.watched:
            self._read(self._seen)
        if self._directories.discard():
            self._writers.clear()

    def _look(self) -> View:
        with self._delayed_by(f"{self._names()}: the file system does not answer"):
            return self._examine(self._paths)

    def _names(self) -> str:
        return ", ".join(map(str, self._paths))

    @contextmanager
    def _delayed_by(self, reason: str, since: float | None = None) -> Iterator[None]:
        self.delay = Delay(reason, _now() if since is None else since)
        try:
            yield
        finally:
            self.delay = None

    def _follow(self, view: View) -> bool:
        """Watch where the files are now; return whether that works."""
        try:
            with self._delayed_by(f"{self._names()}: the file system does not answer"):
                readable = (each for each in view.directories if os.access(each, os.R_OK))
                self._directories.follow(readable)
        except OSError as error:
            if not self._warned and self._look() == view:  # else a directory went meanwhile
                self._post(Unwatchable(_LIMITS.get(error.errno or 0, str(error))))
                self._warned = True
            return False
        self._warned = False
        return True

    def _is_settled(self, view: View, watched_before: frozenset[Path]) -> bool:
        """Return whether the files are complete; if not, wait for a step of the change."""
        if self._seen is not None and view.has_lost(self._seen):
            self._lost_since = _now() if self._lost_since is None else self._lost_since
            remaining = self._lost_since + self._times.replacement - _now()
            if remaining > 0:
                if self._directories.watched:
                    self._directories.wait(remaining)
                    self._wait_for_quiet(view)
                else:
                    self._stopped.wait(min(remaining, self._times.debounce))
                return False
        if self._directories.watched - watched_before:
            # A copy may be filling a directory that it has just made.
            return not self._wait_for_quiet(view)
        return True

    def _wait_for_change(self, view: View) -> None:
        """Return when the files may have changed and the burst of events is over."""
        # The first look is for changes between the look before and the watch.
        look_at, at_once = _now() + self._times.debounce, _AT_ONCE
        while not self._stopped.is_set():
            self._directories.wait(look_at - _now())
            has_changed, is_lossy = self._read(view)
            if has_changed:
                self._is_due = True
                self._wait_for_quiet(view)
                return
            if is_lossy or _now() >= look_at:
                if self._look() != view:
                    return
                look_at, at_once = _now() + self._times.look, _AT_ONCE
            # Bounds the work that events of other files can cause.
            if at_once:
                at_once -= 1
            else:
                self._stopped.wait(self._times.debounce)

    def _wait_for_quiet(self, view: View) -> bool:
        """Wait for the end of a burst of events; return whether there was one."""
        has_ever_changed = False
        end = _now() + self._times.longest_burst
        while not self._stopped.wait(self._times.debounce):
            has_changed, is_lossy = self._read(view)
            has_ever_changed |= has_changed or is_lossy
            if (writer := self._writer()) is not None:
                path, since = writer
                with self._delayed_by(f"{path} is open for writing", since):
                    self._directories.wait(since + self._times.writer - _now())
            elif not (has_changed or is_lossy) or _now() >= end:
                break
        return has_ever_changed

    def _read(self, view: View) -> tuple[bool, bool]:
        """Return whether an event concerns the files, and whether the kernel has lost events."""
        events, is_lossy = self._directories.read()
        if is_lossy:
            self._writers.clear()
        concerning = [each for each in events if view.concerns(each.directory, each.name)]
        for event in concerning:
            self._note_writer(event)
        return bool(concerning), is_lossy

    def _note_writer(self, event: FileEvent) -> None:
        path = event.directory / event.name
        if event.mask & _WRITTEN:
            self._writers.pop(path, None)
        elif event.mask & _WRITING:
            self._writers.setdefault(path, _now())

    def _writer(self) -> tuple[Path, float] | None:
        """Return a file that is being written, and since when."""
        earliest = _now() - self._times.writer
        self._writers = {path: since for path, since in self._writers.items() if since > earliest}
        return next(iter(self._writers.items()), None)
