"""Logs: one line per event on stderr, as text for people or JSON for machines.

Where stderr is the journal, events go there with their fields. Keys, tokens and environment values
never get here: callers pass names, numbers and reasons only.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache, partial
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Protocol, TextIO, cast

import structlog

from agent.clock import SystemClock
from agent.telemetry.journal import Journal, leads_to_journal
from agent.telemetry.plain import to_plain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from structlog.typing import EventDict, FilteringBoundLogger

# Lines that wait for a slow reader: some megabytes at most. As many again may be on their way.
QUEUED_LINES = 10_000
CLOSE_SECONDS = 1.0
# How long a line that follows another waits for more of them.
GATHER_SECONDS = 0.005

_CLOCK = SystemClock()

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


_LAST = Line("")
"""What comes behind all others."""


class Target(Protocol):
    """Where lines go. Whoever makes one closes it."""

    def write(self, lines: Iterable[Line]) -> None:
        """Write them; this may take as long as it likes.

        Raises:
            OSError, ValueError: they cannot be written.
        """
        ...

    def close(self) -> None:
        """Release what was opened."""
        ...


class StreamTarget:
    """Writes text to a stream that others own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, lines: Iterable[Line]) -> None:
        """See Target."""
        self._stream.write("".join(f"{line.text}\n" for line in lines))
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

    def write(self, lines: Iterable[Line]) -> None:
        """See Target."""
        for line in lines:
            self._send(line)

    def close(self) -> None:
        """See Target."""
        self._journal.close()

    def _send(self, line: Line) -> None:
        own = {
            "MESSAGE": line.text,
            "PRIORITY": str(line.priority),
            "SYSLOG_IDENTIFIER": _IDENTIFIER,
        }
        try:
            self._journal.send({**own, **line.fields})
        except OSError:
            self._stream.write(Line(f"<{line.priority}>{p}") for p in line.text.splitlines())


class LogWriter:
    """Writes lines from a thread of its own, so that nobody ever waits for the log.

    Standard error may be a pipe that nobody reads, or a file on a full disk. What does not fit into
    the queue meanwhile is dropped and counted; what cannot be written is lost. It owns the target.
    """

    def __init__(self, target: Target, size: int = QUEUED_LINES) -> None:
        self.target = target
        self.render: Callable[[EventDict], Line] = partial(_line, show=_json, with_fields=False)
        """What makes an event a line of this log; it may be replaced at any time."""
        self._size = size
        self._lines: SimpleQueue[Line] = SimpleQueue()
        self._dropped = 0
        # A daemon thread: one that hangs in a write must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def write(self, line: Line) -> None:
        """Take a line."""
        if self._lines.qsize() < self._size:
            self._lines.put(line)
        else:
            self._dropped += 1

    def audit(self, event: str, **fields: object) -> None:
        """Write an event whatever the level of the log is.

        It takes a tenth of the time that it takes on its way through structlog; each call has one.
        """
        moment = _CLOCK.now().isoformat().replace("+00:00", "Z")
        self.write(self.render({"timestamp": moment, "level": AUDIT, "event": event, **fields}))

    # What structlog calls, by the level.
    debug = info = warning = error = critical = write

    def close(self) -> None:
        """Write what is left, as far as that goes within a second."""
        self._lines.put(_LAST)
        self._thread.join(CLOSE_SECONDS)

    def _run(self) -> None:
        while self._write_all():
            # To wake this thread costs more than to write a line, so that it does not listen for a
            # while: those that follow come together. An event to cut that short, at the end alone,
            # would save five milliseconds there and cost a lock of Python's here each time.
            time.sleep(GATHER_SECONDS)  # noqa: TID251 - not to be woken is its purpose
        self.target.close()

    def _write_all(self) -> bool:
        """Wait for a line, and write those that are there; whether there may be more."""
        lines = [self._lines.get()]
        with suppress(Empty):
            while len(lines) < self._size:  # others go on writing meanwhile
                lines.append(self._lines.get_nowait())
        dropped, self._dropped = self._dropped, 0
        if dropped:
            lost = f"{dropped} log lines were dropped: nobody read them"
            lines.insert(0, Line(lost, _WARNING))
        with suppress(OSError, ValueError):
            self.target.write([line for line in lines if line is not _LAST])
        return all(line is not _LAST for line in lines)


def configure_log(level: str, form: str) -> tuple[FilteringBoundLogger, LogWriter]:
    """Set up logging for this process: its logger, and the writer to close at the end."""
    is_journal = leads_to_journal(_STDERR, os.environ.get("JOURNAL_STREAM"))
    target = JournalTarget(Journal(), sys.stderr) if is_journal else StreamTarget(sys.stderr)
    writer = LogWriter(target)
    lead_log(level, form, writer)
    return cast("FilteringBoundLogger", structlog.get_logger()), writer


def lead_log(level: str, form: str, writer: LogWriter) -> None:
    """Have the log of this process written by this writer."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            # Not the renderer's own, which would show local variables.
            structlog.processors.format_exc_info,
            lambda _logger, _method, event: ((writer.render(event),), {}),
        ],
        logger_factory=lambda *_arguments: writer,
    )
    _hear_libraries()
    adjust_log(level, form, writer)


class _Libraries(logging.Handler):
    """Leads what libraries log, asyncio first of all, where our own events go."""

    def emit(self, record: logging.LogRecord) -> None:
        """See logging.Handler."""
        log = cast("FilteringBoundLogger", structlog.get_logger())
        trace = {"exc_info": record.exc_info} if record.exc_info else {}
        log.log(record.levelno, record.getMessage(), library=record.name, **trace)


def _hear_libraries() -> None:
    root = logging.getLogger()
    # It logs each client that hangs up, with a trace; what matters of that we say ourselves.
    logging.getLogger("grpc").propagate = False
    if not any(isinstance(each, _Libraries) for each in root.handlers):
        root.addHandler(_Libraries(logging.WARNING))


def adjust_log(level: str, form: str, writer: LogWriter) -> None:
    """Set the least important level that is logged, and the form of a line: `text` or `json`."""
    to_journal = isinstance(writer.target, JournalTarget)
    show = _json if form == "json" else _text(bare=to_journal)
    writer.render = partial(_line, show=show, with_fields=to_journal)
    number = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(number))


# --- an event as a line --------------------------------------------------------------------------


def _line(event: EventDict, show: Callable[[EventDict], str], *, with_fields: bool) -> Line:
    text, priority = show(event), _PRIORITIES.get(event["level"], _INFO)
    if not with_fields:
        return Line(text, priority)
    # What the journal knows itself is no field.
    named = {k: v for k, v in event.items() if k != "timestamp"}
    fields = {_field_name(name): _shown(value) for name, value in named.items()}
    return Line(text, priority, fields)


@lru_cache
def _field_name(name: str) -> str:
    """Capitals, digits and underscores (systemd.journal-fields(7))."""
    return (_FIELD_PREFIX + _NO_FIELD_NAME.sub("_", name.upper()))[:_FIELD_NAME_MAX]


def _json(event: EventDict) -> str:
    first = {name: event[name] for name in ("timestamp", "level", "event")}
    return json.dumps({**first, **event}, default=to_plain)


def _text(*, bare: bool) -> Callable[[EventDict], str]:
    """`bare` leaves out the time and the level."""
    colours = _COLOURS if sys.stderr.isatty() else {}

    def show(event: EventDict) -> str:
        level = event["level"]
        before, after = colours.get(level, ("", ""))
        head = "" if bare else f"{event['timestamp']} {before}{level:<7}{after} "
        line = "  ".join(filter(None, [f"{head}{_one_line(event['event'])}", _pairs(event)]))
        return f"{line}\n{event['exception']}" if "exception" in event else line

    return show


def _pairs(event: EventDict) -> str:
    pairs = tuple([each for each in event.items() if each[0] not in _APART])
    try:
        return _joined(pairs)
    except TypeError:  # there are lists in it
        return _joined.__wrapped__(pairs)


# Who comes again has the same line again, but for its time.
@lru_cache(maxsize=1024)
def _joined(pairs: tuple[tuple[str, object], ...]) -> str:
    return " ".join(f"{key}={_quoted(value)}" for key, value in pairs)


def _shown(value: object) -> str:
    if isinstance(value, str):
        return value
    return str(value) if type(value) is int else json.dumps(to_plain(value))


def _quoted(value: object) -> str:
    """Text as it is if that is one word; else so that it is seen where it ends."""
    return _quoted_text(value) if isinstance(value, str) else _shown(value)


@lru_cache(maxsize=1024)
def _quoted_text(text: str) -> str:
    # The same few are in many lines: who asked, and for what.
    return text if _WORD.fullmatch(text) else repr(text)


def _one_line(text: str) -> str:
    return text if text.isprintable() else repr(text)
