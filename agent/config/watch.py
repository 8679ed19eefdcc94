"""Watch entry files for changes, without blocking the event loop.

`agent.config.watch_thread` does everything that touches the file system, in a daemon thread. A hung
file system holds up reloads alone: the log says so, and the agent can still be stopped.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from agent.config.watch_thread import Message, Signal, Unwatchable, WatchThread, WatchTimes
from agent.config.watched_paths import View, look

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence
    from pathlib import Path

    from structlog.typing import FilteringBoundLogger


class FileWatch:
    """Reports changes of entry files and of directories of them, whether they exist yet or not.

    With `start`, changes from then on are reported. Without it, `changes` reports a change as soon
    as the files have been looked at, because they may have been read before.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        log: FilteringBoundLogger,
        times: WatchTimes | None = None,
        look: Callable[[Sequence[Path]], View] = look,
    ) -> None:
        self._paths = tuple(path.absolute() for path in paths)
        self._log = log
        self._times = WatchTimes() if times is None else times
        self._look = look
        self._thread: WatchThread | None = None
        self._error: Exception | None = None
        self._looked = asyncio.Event()
        self._changed = asyncio.Event()
        self._delay_logged_since = 0.0

    async def start(self) -> None:
        """Look at the files for the first time. Call it before the files are first read."""
        self._begin(report_first=False)
        await self._wait(self._looked)

    async def changes(self) -> AsyncGenerator[None, None]:
        """Yield once per settled change, until closed.

        Raises:
            Exception: the watch thread ended with it; the next call starts another.
        """
        if self._thread is None:
            self._begin(report_first=True)
        try:
            while True:
                await self._wait(self._changed)
                self._changed.clear()
                yield
        finally:
            self.close()

    def close(self) -> None:
        """Stop watching."""
        if self._thread is not None:
            self._thread.stop()
            self._thread = None

    def _begin(self, *, report_first: bool) -> None:
        self._error = None
        self._looked.clear()
        self._changed.clear()
        loop = asyncio.get_running_loop()

        def post(message: Message) -> None:
            with suppress(RuntimeError):  # the loop is closed: the agent has stopped
                loop.call_soon_threadsafe(self._receive, thread, message)

        thread = self._thread = WatchThread(
            self._paths, self._times, report_first=report_first, post=post, look=self._look
        )
        thread.start()

    def _receive(self, thread: WatchThread, message: Message) -> None:
        if thread is not self._thread:
            return  # it was stopped meanwhile
        match message:
            case Signal.LOOKED:
                self._looked.set()
            case Signal.CHANGED:
                self._changed.set()
            case Unwatchable(reason):
                self._log.warning(
                    "entry files cannot be watched",
                    reason=reason,
                    advice=f"the agent looks every {self._times.retry:g} s; SIGHUP reloads at once",
                )
            case error:
                self._error = error
                self._looked.set()
                self._changed.set()

    async def _wait(self, event: asyncio.Event) -> None:
        while not event.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(self._times.warn):
                    await event.wait()
            self._log_delay()
        if self._error is not None:
            raise self._error

    def _log_delay(self) -> None:
        delay = None if self._thread is None else self._thread.delay
        if delay is None or delay.since == self._delay_logged_since:
            return
        if time.monotonic() - delay.since >= self._times.warn:
            self._delay_logged_since = delay.since
            self._log.warning("entries not reloaded yet", reason=delay.reason)
