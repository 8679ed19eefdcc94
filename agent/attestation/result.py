"""The result of an attestation, and the memory of processes that were attested before."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from attestors.api import Findings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from agent.kernel.fingerprint import Fingerprint
    from attestors.api import Selector


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What one attestor said, and how long it took to say it. `failure` tells why it said less."""

    attestor: str
    findings: Findings = field(default_factory=Findings)
    failure: str | None = None
    seconds: float = 0.0
    remembered: bool = False
    """Said before, of this same process, and still good."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attested:
    """What is known of a caller."""

    selectors: frozenset[Selector]
    program: frozenset[Selector] = frozenset()
    """Those that hold because of what program runs."""
    reports: tuple[Report, ...] = ()
    notes: tuple[str, ...] = ()
    """Why selectors are missing for good."""
    executable: str | None = None
    """What the kernel calls the program it runs; see executable_name."""
    failures: Mapping[str, str] = field(init=False)
    """Why attestors failed, by their names."""

    def __post_init__(self) -> None:
        failures = {r.attestor: r.failure for r in self.reports if r.failure is not None}
        object.__setattr__(self, "failures", failures)


@dataclass(frozen=True, slots=True)
class _Memory:
    """What attestors found while the fingerprint was this one, and how long each result is good."""

    fingerprint: Fingerprint
    executable: str | None
    reports: Mapping[str, tuple[float, Report]] = field(default_factory=dict)
    joined: Attested = field(init=False)
    good_until: float = field(init=False)

    def __post_init__(self) -> None:
        reports = [report for _until, report in self.reports.values()]
        good_until = min((until for until, _report in self.reports.values()), default=math.inf)
        object.__setattr__(self, "joined", _join(reports, self.executable))
        object.__setattr__(self, "good_until", good_until)

    def at(self, now: float) -> _Memory:
        """What of it is still good."""
        if now < self.good_until:
            return self
        good = {name: (until, r) for name, (until, r) in self.reports.items() if now < until}
        return _Memory(self.fingerprint, self.executable, good)


@dataclass(slots=True)
class _KnownProcess:
    """What is kept of a process, for its next connections."""

    memory: _Memory | None = None


@dataclass(slots=True)
class _Known:
    """What is kept of one caller."""

    process: _KnownProcess
    memory: _Memory | None = None
    checked: Fingerprint | None = None
    """What it looked like when its credentials were those at connect."""
    latest: Attested | None = None
    """None if the last look at it did not hold."""


def _join(reports: Sequence[Report], executable: str | None) -> Attested:
    return Attested(
        selectors=_union([report.findings.selectors for report in reports]),
        program=_union([report.findings.program for report in reports]),
        reports=tuple(reports),
        notes=tuple(note for report in reports for note in report.findings.notes),
        executable=executable,
    )


def _union(sets: Sequence[frozenset[Selector]]) -> frozenset[Selector]:
    # One alone is kept as it is: what is looked up by it is found without comparing it.
    return sets[0] if len(sets) == 1 else frozenset().union(*sets)


def _without_program(attestation: Attested) -> Attested:
    """Who rules a process's user namespace can make it look like any program (prctl(2), ptrace(2)).

    And one whom the agent may not look into could be another program a moment later.
    """
    if not attestation.program:
        return attestation
    note = (
        "no selectors of its program: the process is in a user namespace of its own, or the agent "
        "may not look into it"
    )
    return replace(
        attestation,
        selectors=attestation.selectors - attestation.program,
        program=frozenset(),
        notes=(*attestation.notes, note),
    )
