"""The result of an attestation: the findings of each attestor, and all of them together."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from attestors.api import Findings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from attestors.api import Selector

_NO_PROGRAM = (
    "no program selectors: the process is in a user namespace of its own, or the agent may not "
    "read its memory map"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The findings of one attestor. `failure` is the reason if some or all are missing."""

    attestor: str
    findings: Findings = field(default_factory=Findings)
    failure: str | None = None
    seconds: float = 0.0
    """The duration of the attestor's call."""
    remembered: bool = False
    """Whether the findings are of an earlier attestation of this process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attested:
    """All findings about a caller."""

    selectors: frozenset[Selector]
    program: frozenset[Selector] = frozenset()
    """The selectors that hold because of the program that the process runs."""
    reports: tuple[Report, ...] = ()
    notes: tuple[str, ...] = ()
    """Why selectors are missing permanently."""
    executable: str | None = None
    """The path of the executable, for display; see `executable_name`."""
    failures: Mapping[str, str] = field(init=False)
    """The reasons of the attestors that failed, by name."""

    def __post_init__(self) -> None:
        failures = {r.attestor: r.failure for r in self.reports if r.failure is not None}
        object.__setattr__(self, "failures", failures)

    def without_program(self) -> Attested:
        """Return the result without program selectors, with a note if it had any.

        The owner of a user namespace can make a process of it look like any program (prctl(2),
        ptrace(2)). A process whose memory map cannot be read could run another program a moment
        later without notice.
        """
        if not self.program:
            return self
        return replace(
            self,
            selectors=self.selectors - self.program,
            program=frozenset(),
            notes=(*self.notes, _NO_PROGRAM),
        )


def join(reports: Sequence[Report], executable: str | None) -> Attested:
    """Join the findings of all attestors."""
    return Attested(
        selectors=_union([report.findings.selectors for report in reports]),
        program=_union([report.findings.program for report in reports]),
        reports=tuple(reports),
        notes=tuple(note for report in reports for note in report.findings.notes),
        executable=executable,
    )


def _union(sets: Sequence[frozenset[Selector]]) -> frozenset[Selector]:
    # A single set keeps its identity: the lookup of matches then needs no comparison.
    return sets[0] if len(sets) == 1 else frozenset().union(*sets)
