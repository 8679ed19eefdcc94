"""Readiness: whether the agent can serve."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agent.authority.signer import ManagedAuthority
    from agent.gate.gate import Gate


@dataclass(frozen=True, slots=True)
class Readiness:
    """Reads the state of the authority and of the gate."""

    authority: ManagedAuthority
    gate: Gate

    def not_ready_because(self) -> tuple[str, ...]:
        """Return the reasons why the agent cannot serve; none if it is ready.

        Entries are always in force: without them the agent does not start.
        """
        reasons = []
        if not self.gate.accepts:
            reasons.append("no connections are accepted: the agent starts or stops")
        if not self.authority.can_sign:
            reasons.append("the authority cannot sign: vouchd status says why")
        return tuple(reasons)
