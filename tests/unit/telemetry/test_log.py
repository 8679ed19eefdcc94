"""The log: one line an event, for people or machines, and never the end of a call."""

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
from agent.telemetry import log as log_module
from agent.telemetry.log import Line, LogWriter, StreamTarget, configure_log


class Broken:
    """A standard error whose disk is full."""

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


def test_json_is_one_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    say("info", "event", config=settings(format="json"), path="/x\n\x1b[31m", pid=1)
    [line] = capsys.readouterr().err.splitlines()
    assert json.loads(line)["path"] == "/x\n\x1b[31m"


def test_text_is_one_line_whatever_is_in_it(capsys: pytest.CaptureFixture[str]) -> None:
    """A path that a user chose cannot forge a second line, nor speak to the terminal."""
    hostile = {"path": "/x\nforged line", "other": "\x1b[31mred\r", "names": ["a\nb"]}
    say("warning", "event", config=settings(), **hostile)
    captured = capsys.readouterr().err
    assert len(captured.splitlines()) == 1
    assert "\x1b" not in captured


def test_levels(capsys: pytest.CaptureFixture[str]) -> None:
    say("info", "hidden", config=settings(level="warning"))
    say("warning", "shown", config=settings(level="warning"))
    captured = capsys.readouterr().err
    assert "shown" in captured
    assert "hidden" not in captured


@pytest.mark.parametrize("form", ["text", "json"])
def test_what_is_audited_is_said_whatever_the_level(
    capsys: pytest.CaptureFixture[str], form: str
) -> None:
    _log, writer = configure_log("error", form)
    writer.audit("svid issued", pid=1)
    writer.close()
    [line] = capsys.readouterr().err.splitlines()
    assert re.search(r'\baudit\b.*svid issued.*pid"?[=:] ?1\b', line)


def test_text_is_pleasant_to_read(capsys: pytest.CaptureFixture[str]) -> None:
    """The time, how bad it is, what happened; then the facts in the order of whoever says them."""
    facts: dict[str, object] = {
        "reason": "it is full",
        "zone": "a",
        "bytes": 5,
        "names": ["b", "c"],
    }
    say("warning", "disk is slow", config=settings(), **facts)
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
def test_a_log_that_cannot_be_written_ends_no_call(
    monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.setattr(sys, "stderr", cast("TextIO", Broken()))
    say("warning", "nobody hears this", config=settings(format=form))


def test_a_reader_that_stalls_holds_nobody_up_and_is_told_what_it_missed() -> None:
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
    # What was being written and what waited, each behind a line of those that were dropped.
    assert len(lines) <= 2 * (10 + 1)
    assert [line for line in lines if line.endswith("log lines were dropped: nobody read them")]


def test_what_was_dropped_is_told_before_the_lines_that_come_next() -> None:
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
    assert wrote.getvalue().splitlines() == [
        "line 0",
        "1 log lines were dropped: nobody read them",
        "line 1",
    ]


def test_a_reader_that_never_comes_back_does_not_keep_the_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(log_module, "CLOSE_SECONDS", 0.01)
    go = threading.Event()

    class Dead(io.StringIO):
        def write(self, text: str) -> int:
            go.wait()
            return len(text)

    writer = LogWriter(StreamTarget(Dead()), size=1)
    for _ in range(3):
        writer.write(Line("line"))
    writer.close()
    go.set()


def test_what_libraries_say_is_a_line_like_others(capsys: pytest.CaptureFixture[str]) -> None:
    """Two lines of bare text would break what reads JSON."""
    _log, writer = configure_log("info", "json")
    try:
        int("odd")
    except ValueError:
        logging.getLogger("asyncio").exception("Task exception was\nnever retrieved")
    logging.getLogger("asyncio").info("not worth a line")
    logging.getLogger("grpc._cython.cygrpc").error("somebody hung up")
    writer.close()
    [line] = capsys.readouterr().err.splitlines()
    said = json.loads(line)
    assert said["event"] == "Task exception was\nnever retrieved"
    assert said["library"] == "asyncio"
    assert said["level"] == "error"
    assert "ValueError: invalid literal" in said["exception"]
