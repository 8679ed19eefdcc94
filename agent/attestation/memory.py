"""The memory of findings, valid while the fingerprint of the process stays the same."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from agent.attestation.result import join

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent.attestation.result import Attested, Report
    from agent.kernel.fingerprint import Fingerprint


@dataclass(frozen=True, slots=True)
class Memory:
    """Findings about a process with this fingerprint. Times are those of the event loop."""

    fingerprint: Fingerprint
    executable: str | None
    reports: Mapping[str, tuple[float, Report]] = field(default_factory=dict)
    """By attestor: the time at which the report expires, and the report."""
    joined: Attested = field(init=False)
    expires_at: float = field(init=False)
    """The time at which the first report expires."""

    def __post_init__(self) -> None:
        reports = [report for _expires_at, report in self.reports.values()]
        expires_at = min((at for at, _report in self.reports.values()), default=math.inf)
        object.__setattr__(self, "joined", join(reports, self.executable))
        object.__setattr__(self, "expires_at", expires_at)

    def at(self, now: float) -> Memory:
        """Return the memory without reports that are expired."""
        if now < self.expires_at:
            return self
        valid = {name: (at, report) for name, (at, report) in self.reports.items() if now < at}
        return Memory(self.fingerprint, self.executable, valid)


@dataclass(slots=True)
class KnownProcess:
    """The memory of a process, for its next connections."""

    memory: Memory | None = None


@dataclass(slots=True)
class KnownCaller:
    """The memory of one connection. Times are those of `time.perf_counter`."""

    process: KnownProcess
    memory: Memory | None = None
    checked_fingerprint: Fingerprint | None = None
    """The last fingerprint whose credentials equalled those at connect."""
    attested_at: float = -math.inf
    """When its last attestation began."""
    latest: Attested | None = None
    """The latest result; None if the process changed during it."""
