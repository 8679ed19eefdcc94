"""Log lines that a caller can cause at will: limited in number, and counted."""

from __future__ import annotations

from agent.telemetry.throttled_log import IN_ALL, PER_KEY, Rate, ThrottledLog
from tests.support.fakes import FakeLog


def stopped_clock() -> float:
    return 0.0


def test_repeated_lines_are_suppressed_and_the_next_line_counts_them() -> None:
    lines, now = FakeLog(), [0.0]
    throttled = ThrottledLog(lines.log, seconds=lambda: now[0])
    for _ in range(100):
        throttled.warning("svid not issued", "web", entry_id="web", reason="no key")
    expected = {"event": "svid not issued", "level": "warning", "entry_id": "web"}
    assert lines.lines == [expected | {"reason": "no key"}] * PER_KEY.at_once
    now[0] += PER_KEY.seconds
    throttled.warning("svid not issued", "web")
    assert lines.lines[-1]["suppressed"] == 100 - PER_KEY.at_once
    assert "suppressed_in_all" not in lines.lines[-1]


def test_lines_of_one_key_or_event_do_not_suppress_those_of_another() -> None:
    lines = FakeLog()
    throttled = ThrottledLog(lines.log, seconds=stopped_clock)
    for _ in range(100):
        throttled.warning("svid not issued", "web", entry_id="web")
    throttled.warning("svid not issued", "db", entry_id="db")
    throttled.info("svid not renewed", "web", entry_id="web")
    assert [(line["event"], line["entry_id"]) for line in lines.lines[PER_KEY.at_once :]] == [
        ("svid not issued", "db"),
        ("svid not renewed", "web"),
    ]


def test_lines_of_all_keys_together_are_limited_and_counted() -> None:
    lines, now = FakeLog(), [0.0]
    throttled = ThrottledLog(lines.log, seconds=lambda: now[0])
    for number in range(1000):
        throttled.warning("svid not renewed", f"entry-{number}")
    assert len(lines.lines) == IN_ALL.at_once
    now[0] += IN_ALL.seconds
    throttled.warning("svid not renewed", "another")
    assert lines.lines[-1]["suppressed_in_all"] == 1000 - IN_ALL.at_once


def test_tracebacks_are_limited_like_any_line() -> None:
    lines = FakeLog()
    throttled = ThrottledLog(lines.log, Rate(1, 10.0), seconds=stopped_clock)
    for _ in range(3):
        try:
            _ = 1 / 0
        except ZeroDivisionError:
            throttled.exception("internal error", None, where="call")
    [line] = lines.lines
    assert line["level"] == "error"
    assert line["exc_info"]
