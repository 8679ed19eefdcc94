"""Events in the journal: complete, with their fields, and without blocking a caller."""

from __future__ import annotations

import io
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from agent.telemetry.audit import AuditEvent
from agent.telemetry.journal import Journal, encode, leads_to_journal
from agent.telemetry.log import JournalTarget, Line, LogWriter, configure_log, install_log
from tests.support.journal import FakeJournal, decode


@pytest.fixture
def journald() -> Iterator[FakeJournal]:
    with tempfile.TemporaryDirectory() as folder, FakeJournal(Path(folder) / "socket") as journald:
        yield journald


@given(st.dictionaries(st.from_regex(r"[A-Z][A-Z0-9_]{0,63}", fullmatch=True), st.text()))
def test_any_value_survives_encoding(fields: dict[str, str]) -> None:
    assert decode(encode(fields)) == {name: value.encode() for name, value in fields.items()}


def test_undecodable_bytes_are_escaped() -> None:
    assert decode(encode({"A": "/x\udcff"})) == {"A": b"/x\\udcff"}


@pytest.mark.parametrize("size", [10, 100_000, 5_000_000])
def test_events_of_any_size_arrive(journald: FakeJournal, size: int) -> None:
    journal = Journal(str(journald.path))
    journal.send({"MESSAGE": "x\n" * (size // 2), "PRIORITY": "6"})
    assert journald.event() == {"MESSAGE": b"x\n" * (size // 2), "PRIORITY": b"6"}
    journal.close()


def test_a_restarted_journald_is_found_again(journald: FakeJournal) -> None:
    journal = Journal(str(journald.path))
    journal.send({"A": "1"})
    journald.__exit__()
    with pytest.raises(OSError, match="No such file"):
        journal.send({"A": "2"})
    with FakeJournal(journald.path) as again:
        journal.send({"A": "3"})
        assert again.event() == {"A": b"3"}
    journal.close()
    journald.path.touch()


def test_stderr_is_the_journal_only_if_it_is_the_stream_of_journal_stream(tmp_path: Path) -> None:
    status = os.fstat(2)
    assert leads_to_journal(2, f"{status.st_dev}:{status.st_ino}")
    with (tmp_path / "log").open("w") as elsewhere:
        assert not leads_to_journal(elsewhere.fileno(), f"{status.st_dev}:{status.st_ino}")
    for inherited in (None, "", "nonsense", "1:2:3"):
        assert not leads_to_journal(2, inherited)
    assert not leads_to_journal(-1, "0:0")


def writer_to(
    journald: FakeJournal, stderr: io.StringIO, level: str = "info", form: str = "text"
) -> LogWriter:
    writer = LogWriter(JournalTarget(Journal(str(journald.path)), stderr))
    install_log(level, form, writer)
    return writer


def test_an_event_carries_its_fields(journald: FakeJournal) -> None:
    writer = writer_to(journald, io.StringIO(), level="error")
    fields = {"pid": 7, "audience": ["a", "b"], "odd-näme": "x\ny"}
    writer.audit(AuditEvent("svid issued", fields))
    writer.close()
    assert journald.event() == {
        "MESSAGE": b'svid issued  pid=7 audience=["a", "b"] odd-n\xc3\xa4me=\'x\\ny\'',
        "PRIORITY": b"5",
        "SYSLOG_IDENTIFIER": b"vouchd",
        "VOUCHD_EVENT": b"svid issued",
        "VOUCHD_LEVEL": b"audit",
        "VOUCHD_PID": b"7",
        "VOUCHD_AUDIENCE": b'["a", "b"]',
        "VOUCHD_ODD_N_ME": b"x\ny",
    }


@pytest.mark.parametrize(
    ("level", "priority"), [("debug", b"7"), ("info", b"6"), ("warning", b"4")]
)
def test_levels_become_priorities(journald: FakeJournal, level: str, priority: bytes) -> None:
    writer = writer_to(journald, io.StringIO(), level="debug")
    getattr(structlog.get_logger(), level)("event")
    writer.close()
    assert journald.event()["PRIORITY"] == priority


def test_the_message_is_json_if_the_format_is_json(journald: FakeJournal) -> None:
    writer = writer_to(journald, io.StringIO(), form="json")
    structlog.get_logger().info("event", pid=7)
    writer.close()
    event = journald.event()
    assert event["MESSAGE"].startswith(b'{"timestamp": "2')
    assert event["VOUCHD_PID"] == b"7"


def test_a_traceback_is_part_of_its_event(journald: FakeJournal) -> None:
    writer = writer_to(journald, io.StringIO())
    try:
        int("in the middle")
    except ValueError:
        structlog.get_logger().exception("it broke")
    writer.close()
    event = journald.event()
    assert event["PRIORITY"] == b"3"
    assert event["MESSAGE"].startswith(b"it broke\nTraceback")
    assert b"in the middle" in event["VOUCHD_EXCEPTION"]


def test_without_journald_lines_go_to_stderr_with_their_priority(tmp_path: Path) -> None:
    stderr = io.StringIO()
    writer = LogWriter(JournalTarget(Journal(str(tmp_path / "missing")), stderr))
    writer.write(Line("two\nlines", 3))
    writer.close()
    assert stderr.getvalue() == "<3>two\n<3>lines\n"


def test_a_full_queue_of_journald_blocks_no_writer(journald: FakeJournal) -> None:
    before = 0
    others = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    with others, suppress(BlockingIOError):
        while others.sendto(b"A=1\n", str(journald.path)):
            before += 1
    writer = LogWriter(JournalTarget(Journal(str(journald.path)), io.StringIO()), size=5)
    for number in range(100):
        writer.write(Line(f"line {number}"))
    for _ in range(before):
        assert journald.event() == {"A": b"1"}
    writer.close()
    said = [journald.event() for _ in range(3)]
    assert b"line 0" in [each["MESSAGE"] for each in said]
    [lost] = [each for each in said if b"log lines dropped" in each["MESSAGE"]]
    assert lost["PRIORITY"] == b"4"


def test_the_log_goes_to_journald_if_stderr_is_the_journal(
    journald: FakeJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    status = os.fstat(2)
    monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
    log, writer = configure_log("info", "text", str(journald.path))
    log.info("serving")
    writer.close()
    assert journald.event()["MESSAGE"] == b"serving"
