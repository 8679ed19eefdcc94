"""Logs: one line per event on stderr, as text for people or JSON for machines.

Where stderr is the journal, events go there with their fields. Keys, tokens and environment values
never get here: callers pass names, numbers and reasons only.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import re
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol, TextIO, cast

import structlog

from agent.journal import Journal, leads_to_journal
from agent.plain import as_plain

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from structlog.typing import EventDict, FilteringBoundLogger

    from agent.config import LogSettings

# Lines that wait for a slow reader: some megabytes at most.
QUEUED_LINES = 10_000
CLOSE_SECONDS = 1.0

AUDIT = "audit"
"""The level of what is said whatever the level of the log is."""

# syslog(3); what is audited is "normal, but significant".
_INFO, _WARNING = 6, 4
_PRIORITIES = {"debug": 7, "info": _INFO, AUDIT: 5, "warning": _WARNING, "error": 3, "critical": 2}
_STDERR = 2
_IDENTIFIER = "vouchd"
_FIELD_PREFIX = "VOUCHD_"
_FIELD_NAME_MAX = 64
_NO_FIELD_NAME = re.compile("[^A-Z0-9_]")
# What needs no quotes; nothing in it moves a terminal's cursor.
_WORD = re.compile(r"[A-Za-z0-9_./:@%+,<>-]+")
_APART = frozenset({"timestamp", "level", "event", "exception"})
_COLOURS = {"warning": ("\33[33m", "\33[0m"), "error": ("\33[31m", "\33[0m")}


@dataclass(frozen=True, slots=True)
class Line:
    """An event as it is written: its text without the end of the line, and what the text is of."""

    text: str
    priority: int = _INFO
    fields: Mapping[str, str] = field(default_factory=dict)
    """By their names in the journal."""


class Target(Protocol):
    """Where lines go. Whoever makes one closes it."""

    def write(self, line: Line) -> None:
        """Write one; this may take as long as it likes.

        Raises:
            OSError, ValueError: it cannot be written.
        """
        ...

    def close(self) -> None:
        """Release what was opened."""
        ...


class StreamTarget:
    """Writes text to a stream that others own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, line: Line) -> None:
        """See Target."""
        self._stream.write(f"{line.text}\n")
        self._stream.flush()

    def close(self) -> None:
        """See Target: the stream stays open."""


class JournalTarget:
    """Sends lines with their fields to the journal.

    While it does not listen they go to a stream, which is the journal's too, each with the prefix
    that gives its priority (sd-daemon(3)).
    """

    def __init__(self, journal: Journal, stream: TextIO) -> None:
        self._journal = journal
        self._stream = StreamTarget(stream)

    def write(self, line: Line) -> None:
        """See Target."""
        own = {
            "MESSAGE": line.text,
            "PRIORITY": str(line.priority),
            "SYSLOG_IDENTIFIER": _IDENTIFIER,
        }
        try:
            self._journal.send({**own, **line.fields})
        except OSError:
            for part in line.text.splitlines():
                self._stream.write(Line(f"<{line.priority}>{part}"))

    def close(self) -> None:
        """See Target."""
        self._journal.close()


class LogWriter:
    """Writes lines from a thread of its own, so that nobody ever waits for the log.

    Standard error may be a pipe that nobody reads, or a file on a full disk. What does not fit into
    the queue meanwhile is dropped and counted; what cannot be written is lost. It owns the target.
    """

    def __init__(self, target: Target, size: int = QUEUED_LINES) -> None:
        self.target = target
        self._lines: queue.Queue[Line | None] = queue.Queue(size)
        self._dropped = 0
        # A daemon thread: one that hangs in a write must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def write(self, line: Line) -> None:
        """Take a line."""
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self._dropped += 1

    # What structlog calls, by the level.
    debug = info = warning = error = critical = write

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
                    lost = f"{dropped} log lines were dropped: nobody read them"
                    self.target.write(Line(lost, _WARNING))
                self.target.write(line)
        self.target.close()


def configure_log(settings: LogSettings) -> tuple[FilteringBoundLogger, LogWriter]:
    """Set up logging for this process: its logger, and the writer to close at the end."""
    is_journal = leads_to_journal(_STDERR, os.environ.get("JOURNAL_STREAM"))
    target = JournalTarget(Journal(), sys.stderr) if is_journal else StreamTarget(sys.stderr)
    writer = LogWriter(target)
    adjust_log(settings, writer)
    return cast("FilteringBoundLogger", structlog.get_logger()), writer


def adjust_log(settings: LogSettings, writer: LogWriter) -> None:
    """Have the log of this process follow other settings."""
    to_journal = isinstance(writer.target, JournalTarget)
    show = _json if settings.format == "json" else _text(bare=to_journal)
    structlog.configure(
        processors=[
            _add_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            # Not the renderer's own, which would show local variables.
            structlog.processors.format_exc_info,
            lambda _logger, _method, event: ((_line(event, show, with_fields=to_journal),), {}),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[settings.level.upper()]
        ),
        logger_factory=lambda *_arguments: writer,
    )


def audit_log() -> FilteringBoundLogger:
    """A logger of events whose level is AUDIT; they are written whatever the level of the log."""
    unfiltered = structlog.make_filtering_bound_logger(logging.NOTSET)
    log = structlog.wrap_logger(None, wrapper_class=unfiltered, level=AUDIT)
    return cast("FilteringBoundLogger", log)


# --- an event as a line --------------------------------------------------------------------------


def _add_level(logger: object, method: str, event: EventDict) -> EventDict:
    return event if "level" in event else structlog.processors.add_log_level(logger, method, event)


def _line(event: EventDict, show: Callable[[EventDict], str], *, with_fields: bool) -> Line:
    # What the journal knows itself is no field.
    named = {k: v for k, v in event.items() if with_fields and k != "timestamp"}
    return Line(
        text=show(event),
        priority=_PRIORITIES.get(event["level"], _INFO),
        fields={_field_name(name): _shown(value) for name, value in named.items()},
    )


@lru_cache
def _field_name(name: str) -> str:
    """Capitals, digits and underscores (systemd.journal-fields(7))."""
    return (_FIELD_PREFIX + _NO_FIELD_NAME.sub("_", name.upper()))[:_FIELD_NAME_MAX]


def _json(event: EventDict) -> str:
    first = {name: event[name] for name in ("timestamp", "level", "event")}
    return json.dumps({**first, **event}, default=as_plain)


def _text(*, bare: bool) -> Callable[[EventDict], str]:
    """`bare` leaves out the time and the level."""
    colours = _COLOURS if sys.stderr.isatty() else {}

    def show(event: EventDict) -> str:
        level = event["level"]
        before, after = colours.get(level, ("", ""))
        head = "" if bare else f"{event['timestamp']} {before}{level:<7}{after} "
        pairs = [f"{key}={_quoted(value)}" for key, value in event.items() if key not in _APART]
        line = "  ".join(filter(None, [f"{head}{_one_line(event['event'])}", " ".join(pairs)]))
        return f"{line}\n{event['exception']}" if "exception" in event else line

    return show


def _shown(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(as_plain(value))


def _quoted(value: object) -> str:
    """Text as it is if that is one word; else so that it is seen where it ends."""
    if not isinstance(value, str) or _WORD.fullmatch(value):
        return _shown(value)
    return repr(value)


def _one_line(text: str) -> str:
    return text if text.isprintable() else repr(text)
