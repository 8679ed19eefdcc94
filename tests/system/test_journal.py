"""Events in the journal of a real systemd. As root: `make test-system`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.agent import REPOSITORY
from tests.support.machine import Machine

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    with Machine() as booted:
        yield booted


def logged(machine: Machine, unit: str, *options: str) -> list[dict[str, Any]]:
    """The entries in the journal of a unit that logs like the agent."""
    begin = ["systemd-run", "--quiet", "--wait", f"--unit={unit}"]
    where = f"--working-directory={REPOSITORY}"
    machine.run(*begin, where, *options, sys.executable, "-m", "tests.support.journal_unit")
    machine.run("journalctl", "--sync")
    said = machine.run("journalctl", "--all", "--output=json", f"--unit={unit}.service")
    events = [json.loads(line) for line in said.splitlines()]
    return [event for event in events if event["_SYSTEMD_UNIT"] == f"{unit}.service"]


def test_events_are_found_by_their_fields(machine: Machine) -> None:
    lines, issued, large = logged(machine, "fields")
    assert {event["_TRANSPORT"] for event in (lines, issued, large)} == {"journal"}
    assert {event["SYSLOG_IDENTIFIER"] for event in (lines, issued, large)} == {"vouchd"}
    assert lines["VOUCHD_TEXT"] == "one\ntwo"
    assert (lines["PRIORITY"], lines["VOUCHD_NAMES"]) == ("4", '["a", "b"]')
    assert issued["MESSAGE"] == "svid issued  spiffe_id=spiffe://example.org/payments pid=4711"
    assert (issued["PRIORITY"], issued["VOUCHD_LEVEL"]) == ("5", "audit")
    assert large["VOUCHD_TEXT"] == "x" * 1_000_000
    found = machine.run(
        "journalctl", "--output=cat", "VOUCHD_SPIFFE_ID=spiffe://example.org/payments"
    )
    assert found.splitlines() == [issued["MESSAGE"]]


def test_events_keep_their_priority_without_the_journal_socket(machine: Machine) -> None:
    hidden = "--property=InaccessiblePaths=/run/systemd/journal/socket"
    events = logged(machine, "hidden", hidden)
    assert {event["_TRANSPORT"] for event in events} == {"stdout"}
    assert events[0]["MESSAGE"].startswith("two lines  text='one\\ntwo'")
    assert [event["PRIORITY"] for event in events[:2]] == ["4", "5"]
