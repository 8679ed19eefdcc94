"""The log: one line per event, as text or JSON, and no call waits for it or fails by it."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import sys
import threading
from typing import TextIO, cast

import pytest

from agent.config.settings import LogSettings
from agent.telemetry.audit import AuditEvent
from agent.telemetry.log import Line, LogWriter, StreamTarget, adjust_log, configure_log


class Broken:
    """A standard error on a full disk."""

    def write(self, _text: str) -> int:
        raise OSError(28, "No space left on device")

    def flush(self) -> None:
        raise BrokenPipeError

    def isatty(self) -> bool:
        return False


def settings(**fields: object) -> LogSettings:
    return LogSettings.model_validate(fields)


def say(level: str, event: str, *, config: LogSettings, **fields: object) -> None:
    """Log one line and wait until it is written."""
    log, writer = configure_log(config.level, config.format)
    getattr(log, level)(event, **fields)
    writer.close()


def test_json_is_one_object_per_line(capsys: pytest.CaptureFixture[str]) -> None:
    say("info", "event", config=settings(format="json"), path="/x\n\x1b[31m", pid=1)
    [line] = capsys.readouterr().err.splitlines()
    assert json.loads(line)["path"] == "/x\n\x1b[31m"


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_field_without_a_value_is_absent(capsys: pytest.CaptureFixture[str], form: str) -> None:
    nested: list[dict[str, object]] = [
        {"entry_id": "a", "lacking": [], "expired_at": None, "no_spiffe_id": ""}
    ]
    empty: dict[str, object] = {
        "weaknesses": [],
        "notes": (),
        "reason": "",
        "failures": {},
        "kid": None,
    }
    say("info", "event", config=settings(format=form), count=0, missed=nested, **empty)
    [line] = capsys.readouterr().err.splitlines()
    absent = {*empty, "lacking", "expired_at", "no_spiffe_id"}
    assert [name for name in absent if name in line] == []
    if form == "json":
        assert json.loads(line)["count"] == 0
        assert json.loads(line)["missed"] == [{"entry_id": "a"}]


def test_text_is_one_line_with_any_field_value(capsys: pytest.CaptureFixture[str]) -> None:
    """A path that a user chose cannot forge a second line or send terminal control codes."""
    hostile = {"path": "/x\nforged line", "other": "\x1b[31mred\r", "names": ["a\nb"]}
    say("warning", "event", config=settings(), **hostile)
    captured = capsys.readouterr().err
    assert len(captured.splitlines()) == 1
    assert "\x1b" not in captured


def test_lines_below_the_level_are_not_written(capsys: pytest.CaptureFixture[str]) -> None:
    say("info", "hidden", config=settings(level="warning"))
    say("warning", "shown", config=settings(level="warning"))
    captured = capsys.readouterr().err
    assert "shown" in captured
    assert "hidden" not in captured


@pytest.mark.parametrize("form", ["text", "json"])
def test_the_level_does_not_filter_the_audit_trail(
    capsys: pytest.CaptureFixture[str], form: str
) -> None:
    _log, writer = configure_log("error", form)
    writer.audit(AuditEvent("svid issued", {"pid": 1}))
    writer.close()
    [line] = capsys.readouterr().err.splitlines()
    assert re.search(r'\baudit\b.*svid issued.*pid"?[=:] ?1\b', line)


@pytest.mark.parametrize("form", ["text", "json"])
def test_each_line_of_a_repeated_audit_event_has_its_own_time(
    capsys: pytest.CaptureFixture[str], form: str
) -> None:
    _log, writer = configure_log("info", form)
    event = AuditEvent("svid issued", {"executable": "/x <moment>", "pid": 1})
    for _ in range(2):
        writer.audit(event)
    adjust_log("info", "json", writer)
    writer.audit(event)
    writer.close()
    lines = capsys.readouterr().err.splitlines()
    moments = [re.findall(r"\d{4}-\d\d-\d\dT[\d:.]+Z", line) for line in lines]
    assert len(lines) == 3
    assert all(len(found) == 1 for found in moments)
    assert moments[0] < moments[1] < moments[2]
    assert all("/x <moment>" in line for line in lines)
    assert json.loads(lines[2])["pid"] == 1, (
        "a new format holds for events that were rendered before"
    )


def test_text_has_time_level_event_and_fields_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    fields: dict[str, object] = {
        "reason": "it is full",
        "zone": "a",
        "bytes": 5,
        "names": ["b", "c"],
    }
    say("warning", "disk is slow", config=settings(), **fields)
    [line] = capsys.readouterr().err.splitlines()
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT[\d:.]+Z warning disk is slow"
        r"  reason='it is full' zone=a bytes=5 names=\[\"b\", \"c\"\]",
        line,
    )


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_traceback_shows_no_variables(capsys: pytest.CaptureFixture[str], form: str) -> None:
    log, writer = configure_log("info", form)
    secret = os.urandom(8).hex()
    try:
        int(f"{len(secret)} digits")
    except ValueError:
        log.exception("it broke")
    writer.close()
    captured = capsys.readouterr().err
    assert "16 digits" in captured
    assert secret not in captured


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_log_call_does_not_fail_if_stderr_cannot_be_written(
    monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.setattr(sys, "stderr", cast("TextIO", Broken()))
    say("warning", "lost", config=settings(format=form))


def test_a_slow_reader_blocks_no_writer_and_sees_the_number_of_dropped_lines() -> None:
    go, wrote = threading.Event(), io.StringIO()

    class Stalled(io.StringIO):
        def write(self, text: str) -> int:
            assert go.wait(10)
            return wrote.write(text)

    writer = LogWriter(StreamTarget(Stalled()), size=10)
    for number in range(100):
        writer.write(Line(f"line {number}"))
    go.set()
    writer.close()
    lines = wrote.getvalue().splitlines()
    assert "line 0" in lines[:2]
    # Two batches, each behind a line that counts the dropped ones.
    assert len(lines) <= 2 * (10 + 1)
    assert sum(json.loads(line)["count"] for line in lines if "dropped" in line) >= 100 - 2 * 10


def test_the_count_of_dropped_lines_precedes_the_next_line() -> None:
    busy, go, wrote = threading.Event(), threading.Event(), io.StringIO()

    class Stalled(io.StringIO):
        def write(self, text: str) -> int:
            busy.set()
            assert go.wait(10)
            return wrote.write(text)

    writer = LogWriter(StreamTarget(Stalled()), size=1)
    writer.write(Line("line 0"))
    assert busy.wait(10)
    writer.write(Line("line 1"))
    writer.write(Line("line 2"))
    go.set()
    writer.close()
    first, dropped, second = wrote.getvalue().splitlines()
    assert (first, second) == ("line 0", "line 1")
    fields = json.loads(dropped)
    assert fields["event"] == "log lines dropped"
    assert (fields["level"], fields["count"]) == ("warning", 1)


def test_a_blocked_write_does_not_keep_the_process_from_ending() -> None:
    go = threading.Event()

    class Dead(io.StringIO):
        def write(self, text: str) -> int:
            go.wait()
            return len(text)

    writer = LogWriter(StreamTarget(Dead()), size=1, close_seconds=0.01)
    for _ in range(3):
        writer.write(Line("line"))
    writer.close()
    go.set()


def test_records_of_libraries_become_events(capsys: pytest.CaptureFixture[str]) -> None:
    """Bare text on stderr would break a reader of JSON lines."""
    _log, writer = configure_log("info", "json")
    try:
        int("odd")
    except ValueError:
        logging.getLogger("asyncio").exception("Task exception was\nnever retrieved")
    logging.getLogger("asyncio").info("not worth a line")
    logging.getLogger("grpc._cython.cygrpc").error("client disconnected")
    writer.close()
    [line] = capsys.readouterr().err.splitlines()
    event = json.loads(line)
    assert event["event"] == "Task exception was\nnever retrieved"
    assert event["library"] == "asyncio"
    assert event["level"] == "error"
    assert "ValueError: invalid literal" in event["exception"]
