"""A report expires at the time that its attestor allows, each on its own."""

from __future__ import annotations

from typing import Any, cast

from agent.attestation.memory import Memory
from agent.attestation.result import Report
from attestors.api import Findings
from tests.support.attestation import ONE, TWO

FINGERPRINT = cast("Any", None)


def test_expired_report_is_forgotten_and_the_other_one_stays() -> None:
    reports = {
        "fake": (10.0, Report(attestor="fake", findings=Findings(frozenset({ONE})))),
        "other": (20.0, Report(attestor="other", findings=Findings(frozenset({TWO})))),
    }
    memory = Memory(FINGERPRINT, "/bin/a", reports)
    assert memory.at(9.9) is memory
    assert memory.joined.selectors == {ONE, TWO}
    assert memory.at(10.0).joined.selectors == {TWO}
    assert memory.at(10.0).expires_at == 20.0
    assert not memory.at(20.0).joined.selectors
