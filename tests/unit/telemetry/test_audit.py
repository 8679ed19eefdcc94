"""The audit trail: a complete line per SVID, and a limited number of lines per refused user."""

from __future__ import annotations

import datetime as dt
import hashlib
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from agent.entries.entry import EntryId
from agent.kernel.caller import Caller
from agent.telemetry.audit import (
    LINES_IN_ALL,
    LINES_PER_USER,
    Audit,
    AuditEvent,
    Evidence,
    IssuedX509,
    RefusedCall,
    selectors_sha256,
)
from agent.telemetry.throttled_log import Rate
from attestors.api import Selector
from tests.support.fakes import START, FakeLog

REFUSAL = RefusedCall(reason="nothing matches", code="PERMISSION_DENIED", method="FetchX509SVID")
SVID = IssuedX509(
    spiffe_id="spiffe://example.org/a", entry_id=EntryId("a"), serial="1f", expires_at=START
)
SELECTORS = frozenset({Selector("unix", "uid:1001"), Selector("docker", "env:PASSWORD=hunter2")})
EVIDENCE: Any = SimpleNamespace(executable="/usr/bin/a", selectors=SELECTORS)
SHOWN = b"docker:env:PASSWORD=<hidden>\nunix:uid:1001\n"


def caller(uid: int = 1001, inode: int | None = 77) -> Caller:
    return cast(
        "Caller",
        SimpleNamespace(
            credentials=SimpleNamespace(pid=4711, uid=uid), process=SimpleNamespace(inode=inode)
        ),
    )


class Site:
    """An audit trail with a clock that the test sets."""

    def __init__(self, per_user: Rate = LINES_PER_USER, in_all: Rate = LINES_IN_ALL) -> None:
        self.now = 0.0
        self.evidence: Any = EVIDENCE
        self.lines = FakeLog()
        self.audit = Audit(
            self.lines.write_audit,
            "boot",
            lambda _: cast("Evidence", self.evidence),
            lambda: self.now,
            lines_per_user=per_user,
            lines_in_all=in_all,
        )

    def refused(self) -> list[dict[str, Any]]:
        return self.lines.of("call refused")


@pytest.fixture
def site() -> Site:
    return Site()


def test_a_line_names_the_svid_and_its_holder(site: Site) -> None:
    site.audit.issued(caller(), SVID, EVIDENCE)
    assert site.lines.lines == [
        {
            "event": "svid issued",
            "level": "info",
            "kind": "x509",
            "spiffe_id": "spiffe://example.org/a",
            "entry_id": "a",
            "serial": "1f",
            "expires_at": "2026-01-01T12:00:00Z",
            "pid": 4711,
            "uid": 1001,
            "executable": "/usr/bin/a",
            "selectors_sha256": hashlib.sha256(SHOWN).hexdigest(),
            "process_key": "boot/77",
        }
    ]


def test_process_that_calls_again_causes_the_same_event() -> None:
    """The log renders an event once; a different process, SVID or evidence is another event."""
    events: list[AuditEvent] = []
    audit = Audit(events.append, "boot", lambda _: None, lambda: 0.0)
    renewed = replace(SVID, expires_at=START + dt.timedelta(hours=1))
    elsewhere = SimpleNamespace(executable="/usr/bin/b", selectors=SELECTORS)
    for its_caller, svid, evidence in (
        (caller(), SVID, EVIDENCE),
        (caller(), SVID, EVIDENCE),
        (caller(inode=78), SVID, EVIDENCE),
        (caller(), renewed, EVIDENCE),
        (caller(), SVID, elsewhere),
    ):
        audit.issued(its_caller, svid, cast("Evidence", evidence))
    assert events[0] is events[1]
    assert len(set(events)) == 4
    assert [event.fields["process_key"] for event in events[1:3]] == ["boot/77", "boot/78"]
    assert events[3].fields["expires_at"] == "2026-01-01T13:00:00Z"
    assert events[4].fields["executable"] == "/usr/bin/b"


@pytest.mark.parametrize(
    ("evidence", "inode", "missing"),
    [
        (None, 77, {"executable", "selectors_sha256"}),
        (SimpleNamespace(executable=None, selectors=SELECTORS), 77, {"executable"}),
        (SimpleNamespace(executable="/a", selectors=SELECTORS), None, {"process_key"}),
    ],
)
def test_a_line_has_no_field_for_missing_evidence(
    site: Site, evidence: Any, inode: int | None, missing: set[str]
) -> None:
    site.evidence = evidence
    site.audit.refused(caller(inode=inode), REFUSAL)
    [line] = site.refused()
    assert {"executable", "selectors_sha256", "process_key"} - set(line) == missing


def test_the_selector_digest_does_not_depend_on_environment_values() -> None:
    other = frozenset({Selector("unix", "uid:1001"), Selector("docker", "env:PASSWORD=guess")})
    assert selectors_sha256(SELECTORS) == selectors_sha256(other)
    assert selectors_sha256(SELECTORS) != selectors_sha256(frozenset())


def test_the_selector_digest_accepts_paths_that_are_not_utf8() -> None:
    assert selectors_sha256(frozenset({Selector("unix", "path:/x\udcff")}))


def test_refusals_of_one_user_are_suppressed_and_counted(site: Site) -> None:
    for _ in range(10_000):
        site.audit.refused(caller(), REFUSAL)
    assert len(site.refused()) == LINES_PER_USER.at_once
    site.audit.refused(caller(uid=2), REFUSAL)
    assert len(site.refused()) == LINES_PER_USER.at_once + 1, "each user has its own limit"
    site.now += LINES_PER_USER.seconds
    site.audit.refused(caller(), REFUSAL)
    assert site.refused()[-1]["suppressed"] == 10_000 - LINES_PER_USER.at_once
    assert "suppressed" not in site.refused()[-2]


def test_lines_about_svids_are_never_suppressed(site: Site) -> None:
    for _ in range(1000):
        site.audit.refused(caller(), REFUSAL)
        site.audit.issued(caller(), SVID, EVIDENCE)
    assert len(site.lines.of("svid issued")) == 1000


def test_refusals_of_all_users_are_limited_and_every_one_is_counted(site: Site) -> None:
    for uid in range(3000):
        site.audit.refused(caller(uid), REFUSAL)
    assert len(site.refused()) == LINES_IN_ALL.at_once
    for _ in range(LINES_PER_USER.at_once + 10):
        site.audit.refused(caller(uid=5000), REFUSAL)
    site.now += LINES_PER_USER.seconds
    site.audit.refused(caller(uid=5000), REFUSAL)
    line = site.refused()[-1]
    said = line["suppressed"] + line["suppressed_in_all"]
    assert len(site.refused()) + said == 3000 + LINES_PER_USER.at_once + 11


def test_the_count_of_a_suppressed_line_moves_to_the_next_line() -> None:
    site = Site(per_user=Rate(1, 10.0), in_all=Rate(1, 1000.0))
    for _ in range(5):
        site.audit.refused(caller(), REFUSAL)
    site.now += 10
    site.audit.refused(caller(), REFUSAL)
    assert len(site.refused()) == 1
    site.now += 1000
    site.audit.refused(caller(), REFUSAL)
    assert site.refused()[-1]["suppressed_in_all"] == 5


def test_callers_without_a_name_share_one_limit(site: Site) -> None:
    for _ in range(100):
        site.audit.refused(None, REFUSAL)
    assert len(site.refused()) == LINES_PER_USER.at_once
    assert "pid" not in site.refused()[0]


def test_a_disabled_audit_trail_writes_nothing(site: Site) -> None:
    site.audit.enabled = False
    site.audit.issued(caller(), SVID, EVIDENCE)
    site.audit.refused(caller(), REFUSAL)
    assert not site.lines.lines


def test_expires_at_is_in_utc(site: Site) -> None:
    east = dt.timezone(dt.timedelta(hours=2))
    svid = IssuedX509(
        spiffe_id="x", entry_id=EntryId("a"), serial="1", expires_at=START.astimezone(east)
    )
    site.audit.issued(caller(), svid, EVIDENCE)
    assert site.lines.lines[0]["expires_at"] == "2026-01-01T12:00:00Z"
