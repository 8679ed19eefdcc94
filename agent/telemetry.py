"""Logs: one line per event on stderr, as text for people or JSON for machines.

Keys, tokens and environment values never get here: callers pass names, numbers and reasons only.
"""

from __future__ import annotations

import json
import logging
import queue
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, TextIO, cast

import structlog

if TYPE_CHECKING:
    from structlog.typing import EventDict, FilteringBoundLogger, Processor

    from agent.config import LogSettings

# Lines that wait for a slow reader: some megabytes at most.
QUEUED_LINES = 10_000
CLOSE_SECONDS = 1.0


class LogWriter:
    """Writes lines from a thread of its own, so that nobody ever waits for the log.

    Standard error may be a pipe that nobody reads, or a file on a full disk. What does not fit into
    the queue meanwhile is dropped and counted; what cannot be written is lost.
    """

    def __init__(self, target: TextIO, size: int = QUEUED_LINES) -> None:
        self._target = target
        self._lines: queue.Queue[str | None] = queue.Queue(size)
        self._dropped = 0
        # A daemon thread: one that hangs in a write must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def write(self, text: str) -> None:
        """Take a line, newline and all."""
        try:
            self._lines.put_nowait(text)
        except queue.Full:
            self._dropped += 1

    def flush(self) -> None:
        """Nothing to do: the thread writes as fast as it can."""

    def close(self) -> None:
        """Write what is left, as far as that goes within a second."""
        with suppress(queue.Full):
            self._lines.put(None, timeout=CLOSE_SECONDS)
        self._thread.join(CLOSE_SECONDS)

    def _run(self) -> None:
        while (line := self._lines.get()) is not None:
            dropped, self._dropped = self._dropped, 0
            with suppress(OSError, ValueError):
                if dropped:
                    self._target.write(f"{dropped} log lines were dropped: nobody read them\n")
                self._target.write(line)
                self._target.flush()


def configure_log(settings: LogSettings) -> tuple[FilteringBoundLogger, LogWriter]:
    """Set up logging for this process: its logger, and the writer to close at the end."""
    writer = LogWriter(sys.stderr)
    adjust_log(settings, writer)
    return cast("FilteringBoundLogger", structlog.get_logger()), writer


def adjust_log(settings: LogSettings, writer: LogWriter) -> None:
    """Have the log of this process follow other settings."""
    processors: list[Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    if settings.format == "json":
        processors.append(structlog.processors.JSONRenderer())
    else:
        processors.append(_structures_as_json)
        processors.append(structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()))
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[settings.level.upper()]
        ),
        logger_factory=structlog.WriteLoggerFactory(file=cast("TextIO", writer)),
    )


def _structures_as_json(_logger: object, _method: str, event: EventDict) -> EventDict:
    """Lists of mappings, as explanations hold them, for programs to read off the line."""
    return {
        key: json.dumps(value) if isinstance(value, list) and _has_mappings(value) else value
        for key, value in event.items()
    }


def _has_mappings(values: list[object]) -> bool:
    return any(isinstance(value, dict) for value in values)
