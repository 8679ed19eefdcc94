"""The log: one line per event on stderr, as text or JSON.

If stderr is the journal, events go there with their fields. Keys, tokens and values of environment
variables are never logged: fields are names, numbers and reasons.
"""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import sys
import threading
import time
from contextlib import suppress
from functools import lru_cache, partial
from queue import Empty, SimpleQueue
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TextIO, cast

from agent.clock import SystemClock
from agent.telemetry.bare_structlog import structlog
from agent.telemetry.journal import JOURNAL_SOCKET, Journal, leads_to_journal
from agent.telemetry.plain import to_plain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from structlog.typing import EventDict, FilteringBoundLogger

    from agent.telemetry.audit import AuditEvent

# Lines that wait for a slow reader, some megabytes at most. As many again may be in writing.
QUEUED_LINES = 10_000
CLOSE_SECONDS = 1.0
# The pause between two writes, in which further lines gather.
GATHER_SECONDS = 0.02

_CLOCK = SystemClock()

AUDIT = "audit"
"""The level of the audit trail; `log.level` does not filter it."""

# syslog(3). The audit trail is "normal, but significant".
_INFO = 6
_PRIORITIES = {"debug": 7, "info": _INFO, AUDIT: 5, "warning": 4, "error": 3, "critical": 2}
_STDERR = 2
_IDENTIFIER = "vouchd"
_FIELD_PREFIX = "VOUCHD_"
_FIELD_NAME_MAX = 64
_NO_FIELD_NAME = re.compile("[^A-Z0-9_]")
# Text that needs no quotes: it holds no blank, quote or control character.
_WORD = re.compile(r"[A-Za-z0-9_./:@%+,<>-]+")
_EMPTY: tuple[object, ...] = (None, "", [], (), {})
_APART = frozenset({"timestamp", "level", "event", "exception"})
_COLOURS = {"warning": ("\33[33m", "\33[0m"), "error": ("\33[31m", "\33[0m")}


_NO_FIELDS: Mapping[str, str] = MappingProxyType({})
# Stands for the time in a line that is rendered once and written again and again. No format escapes
# it, and no text that others chose contains it.
_LATER = secrets.token_hex(16)


class Line(NamedTuple):
    """A rendered event: its text without the newline, its priority and its journal fields."""

    text: str
    priority: int = _INFO
    fields: Mapping[str, str] = _NO_FIELDS
    """Values by the names that they have in the journal."""


_LAST = Line("")
"""The sentinel that ends the writer thread."""


class Target(Protocol):
    """A destination of lines. Its creator closes it."""

    def write(self, lines: Iterable[Line]) -> None:
        """Write lines; this may block.

        Raises:
            OSError, ValueError: the lines cannot be written.
        """
        ...

    def close(self) -> None:
        """Close what the target opened itself."""
        ...


class StreamTarget:
    """A target that writes text to a stream and does not own it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, lines: Iterable[Line]) -> None:
        """See Target."""
        self._stream.write("".join(f"{line.text}\n" for line in lines))
        self._stream.flush()

    def close(self) -> None:
        """See Target. The stream stays open."""


class JournalTarget:
    """A target that sends lines with their fields to journald.

    While journald is not reachable, lines go to `stream` with the priority prefix of sd-daemon(3).
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
    """Writes lines from a thread of its own, so that the event loop never waits for the log.

    Standard error may be a full pipe or a file on a full disk. Lines that do not fit into the queue
    are dropped and counted; lines that the target refuses are lost. It owns the target.
    """

    def __init__(
        self, target: Target, size: int = QUEUED_LINES, close_seconds: float = CLOSE_SECONDS
    ) -> None:
        self.target = target
        self.render: Callable[[EventDict], Line] = partial(_line, show=_as_json, with_fields=False)
        """Renders an event. It may be replaced at any time."""
        self._size = size
        self._close_seconds = close_seconds
        self._lines: SimpleQueue[Line] = SimpleQueue()
        self._dropped = 0
        # A daemon thread: a blocked write must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def write(self, line: Line) -> None:
        """Queue a line, or drop and count it if the queue is full."""
        if self._lines.qsize() < self._size:
            self._lines.put(line)
        else:
            self._dropped += 1

    def audit(self, event: AuditEvent) -> None:
        """Queue an event of the audit trail, which `log.level` does not filter.

        Every call writes one, so this path avoids structlog, which takes ten times as long, and
        renders an event that comes again once.
        """
        line, before, after = _rendered_once(self.render, event)
        if after is not None:
            line = Line(f"{before}{_moment()}{after}", line.priority, line.fields)
        self.write(line)

    # The methods that structlog calls.
    debug = info = warning = error = critical = write

    def close(self) -> None:
        """Write the queued lines, for at most `close_seconds`."""
        self._lines.put(_LAST)
        self._thread.join(self._close_seconds)

    def _event(self, level: str, event: str, fields: Mapping[str, object]) -> Line:
        return self.render({"timestamp": _moment(), "level": level, "event": event, **fields})

    def _run(self) -> None:
        while self._write_all():
            # Waking this thread costs more than writing a line; lines that follow gather meanwhile.
            # A wait that `close` could cut short would cost a lock for every line.
            time.sleep(GATHER_SECONDS)  # noqa: TID251 - a pause that no line may cut short
        self.target.close()

    def _write_all(self) -> bool:
        """Wait for a line, write all queued ones, and return whether to go on."""
        lines = [self._lines.get()]
        with suppress(Empty):
            while len(lines) < self._size:  # lines are added meanwhile
                lines.append(self._lines.get_nowait())
        dropped, self._dropped = self._dropped, 0
        if dropped:
            fields = {"count": dropped, "reason": "stderr was not read in time"}
            lines.insert(0, self._event("warning", "log lines dropped", fields))
        with suppress(OSError, ValueError):
            self.target.write([line for line in lines if line is not _LAST])
        return all(line is not _LAST for line in lines)


def configure_log(
    level: str, form: str, journal_socket: str = JOURNAL_SOCKET
) -> tuple[FilteringBoundLogger, LogWriter]:
    """Set up the log of this process; return its logger, and the writer to close at the end."""
    is_journal = leads_to_journal(_STDERR, os.environ.get("JOURNAL_STREAM"))
    stderr = StreamTarget(sys.stderr)
    target = JournalTarget(Journal(journal_socket), sys.stderr) if is_journal else stderr
    writer = LogWriter(target)
    install_log(level, form, writer)
    return cast("FilteringBoundLogger", structlog.get_logger()), writer


def install_log(level: str, form: str, writer: LogWriter) -> None:
    """Send the log of this process to a writer."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            # Not the traceback renderer of structlog, which shows local variables.
            structlog.processors.format_exc_info,
            _drop_empty,
            lambda _logger, _method, event: ((writer.render(event),), {}),
        ],
        logger_factory=lambda *_arguments: writer,
    )
    _capture_libraries()
    adjust_log(level, form, writer)


class _LibraryHandler(logging.Handler):
    """Sends log records of libraries, such as asyncio, to this log."""

    def emit(self, record: logging.LogRecord) -> None:
        """See logging.Handler."""
        log = cast("FilteringBoundLogger", structlog.get_logger())
        trace = {"exc_info": record.exc_info} if record.exc_info else {}
        log.log(record.levelno, record.getMessage(), library=record.name, **trace)


def _capture_libraries() -> None:
    root = logging.getLogger()
    # gRPC logs a traceback for each client that disconnects; the agent logs that itself.
    logging.getLogger("grpc").propagate = False
    if not any(isinstance(each, _LibraryHandler) for each in root.handlers):
        root.addHandler(_LibraryHandler(logging.WARNING))


def adjust_log(level: str, form: str, writer: LogWriter) -> None:
    """Set the minimum level (`debug` to `error`) and the format (`text` or `json`)."""
    to_journal = isinstance(writer.target, JournalTarget)
    show = _as_json if form == "json" else _as_text(bare=to_journal)
    writer.render = partial(_line, show=show, with_fields=to_journal)
    number = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(number))


# --- an event as a line --------------------------------------------------------------------------


def _moment() -> str:
    return _CLOCK.now().isoformat().replace("+00:00", "Z")


@lru_cache(maxsize=1024)
def _rendered_once(
    render: Callable[[EventDict], Line], event: AuditEvent
) -> tuple[Line, str, str | None]:
    """Return the line of an event; its text before the time, and after it if it has a time."""
    line = render({"timestamp": _LATER, "level": AUDIT, "event": event.event, **event.fields})
    before, has_time, after = line.text.partition(_LATER)
    return line, before, after if has_time else None


def _drop_empty(_logger: object, _method: str, event: EventDict) -> EventDict:
    """Drop fields without a value. The audit trail has none, so `LogWriter.audit` omits this."""
    return {**_with_values(event), "event": event["event"]}


def _with_values(value: Any) -> Any:
    match value:
        case dict():
            return {k: _with_values(v) for k, v in value.items() if v not in _EMPTY}
        case list():
            return [_with_values(each) for each in value]
        case _:
            return value


def _line(event: EventDict, show: Callable[[EventDict], str], *, with_fields: bool) -> Line:
    text, priority = show(event), _PRIORITIES.get(event["level"], _INFO)
    if not with_fields:
        return Line(text, priority)
    # journald adds the time itself.
    named = {k: v for k, v in event.items() if k != "timestamp"}
    fields = {_field_name(name): _shown(value) for name, value in named.items()}
    return Line(text, priority, fields)


@lru_cache
def _field_name(name: str) -> str:
    """Capitals, digits and underscores (systemd.journal-fields(7))."""
    return (_FIELD_PREFIX + _NO_FIELD_NAME.sub("_", name.upper()))[:_FIELD_NAME_MAX]


def _as_json(event: EventDict) -> str:
    first = {name: event[name] for name in ("timestamp", "level", "event")}
    return json.dumps({**first, **event}, default=to_plain)


def _as_text(*, bare: bool) -> Callable[[EventDict], str]:
    """Return a renderer; `bare` omits the time and the level."""
    colours = _COLOURS if sys.stderr.isatty() else {}

    def show(event: EventDict) -> str:
        level = event["level"]
        before, after = colours.get(level, ("", ""))
        head = "" if bare else f"{event['timestamp']} {before}{level:<7}{after} "
        line = "  ".join(filter(None, [f"{head}{_one_line(event['event'])}", _pairs(event)]))
        return f"{line}\n{event['exception']}" if "exception" in event else line

    return show


def _pairs(event: EventDict) -> str:
    return " ".join(f"{k}={_quoted(value)}" for k, value in event.items() if k not in _APART)


def _shown(value: object) -> str:
    if isinstance(value, str):
        return value
    return str(value) if type(value) is int else json.dumps(to_plain(value))


def _quoted(value: object) -> str:
    """Return a word unchanged, other text in quotes."""
    return _quoted_text(value) if isinstance(value, str) else _shown(value)


@lru_cache(maxsize=1024)
def _quoted_text(text: str) -> str:
    # Few texts, such as paths and reasons, occur in many lines.
    return text if _WORD.fullmatch(text) else repr(text)


def _one_line(text: str) -> str:
    return text if text.isprintable() else repr(text)
