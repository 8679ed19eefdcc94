"""What one entry's trouble, called upon without end, may put into the log."""

from agent.errors import AuthorityError
from agent.telemetry import throttled_log
from agent.telemetry.throttled_log import ThrottledLog
from tests.support.fakes import Lines

BROKEN = AuthorityError("no key")


def test_the_first_are_said_and_then_how_many_were_not() -> None:
    lines, now = Lines(), [0.0]
    complaint = ThrottledLog(lines.log, lambda: now[0])
    for _ in range(100):
        complaint.warn("svid not made", "web", BROKEN)
    said = lines.of("svid not made")
    assert said == [
        {"event": "svid not made", "level": "warning", "entry": "web", "reason": "no key"}
    ] * (throttled_log.ENTRY_AT_ONCE)
    now[0] += throttled_log.ENTRY_SECONDS
    complaint.warn("svid not made", "web", BROKEN)
    assert lines.of("svid not made")[-1]["not_logged"] == 100 - throttled_log.ENTRY_AT_ONCE


def test_one_entry_does_not_silence_another_nor_one_kind_another() -> None:
    lines = Lines()
    complaint = ThrottledLog(lines.log, lambda: 0.0)
    for _ in range(100):
        complaint.warn("svid not made", "web", BROKEN)
    complaint.warn("svid not made", "db", BROKEN)
    complaint.warn("svid not renewed", "web", BROKEN)
    assert {(line["event"], line["entry"]) for line in lines.lines} == {
        ("svid not made", "web"),
        ("svid not made", "db"),
        ("svid not renewed", "web"),
    }


def test_all_entries_together_have_a_limit_too() -> None:
    lines = Lines()
    complaint = ThrottledLog(lines.log, lambda: 0.0)
    for number in range(1000):
        complaint.warn("svid not renewed", f"entry-{number}", BROKEN)
    assert len(lines.lines) == throttled_log.ALL_AT_ONCE
