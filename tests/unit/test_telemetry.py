"""The log: one line an event, for people or machines, and never the end of a call."""

from __future__ import annotations

import json
import sys
from typing import TextIO, cast

import pytest

from agent.config import LogSettings
from agent.telemetry import configure_log


class Broken:
    """A standard error whose disk is full."""

    def write(self, _text: str) -> int:
        raise OSError(28, "No space left on device")

    def flush(self) -> None:
        raise BrokenPipeError

    def isatty(self) -> bool:
        return False


def settings(**fields: str) -> LogSettings:
    return LogSettings.model_validate(fields)


def test_json_is_one_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure_log(settings(format="json")).info("event", path="/x\n\x1b[31m", pid=1)
    [line] = capsys.readouterr().err.splitlines()
    assert json.loads(line)["path"] == "/x\n\x1b[31m"


def test_text_is_one_line_whatever_is_in_it(capsys: pytest.CaptureFixture[str]) -> None:
    """A path that a user chose cannot forge a second line, nor speak to the terminal."""
    log = configure_log(settings())
    log.warning("event", path="/x\nforged line", other="\x1b[31mred\r", names=["a\nb"])
    captured = capsys.readouterr().err
    assert len(captured.splitlines()) == 1
    assert "\x1b" not in captured


def test_levels(capsys: pytest.CaptureFixture[str]) -> None:
    log = configure_log(settings(level="warning"))
    log.info("hidden")
    log.warning("shown")
    assert "hidden" not in capsys.readouterr().err


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_log_that_cannot_be_written_ends_no_call(
    monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.setattr(sys, "stderr", cast("TextIO", Broken()))
    configure_log(settings(format=form)).warning("nobody hears this")
