"""What a caller may have, right now: its selectors, and the registration entries they match."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.errors import AttestationError, NoIdentityError

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from agent.attestation import WorkloadAttestor
    from agent.clock import Clock
    from agent.entries import Entry, EntrySet
    from agent.peer import Caller


@dataclass(frozen=True, slots=True, kw_only=True)
class Entitlement:
    """The entries of one caller in their order: the first is its default identity.

    `complete` is False while an attestor fails: there may be more to have later.
    """

    entries: tuple[Entry, ...]
    complete: bool


class Entitlements:
    """Attests callers and matches them against the registration entries."""

    def __init__(
        self,
        attestor: WorkloadAttestor,
        entries: EntrySet,
        clock: Clock,
        log: FilteringBoundLogger,
    ) -> None:
        self._attestor = attestor
        self._entries = entries
        self._clock = clock
        self._log = log

    async def of(self, caller: Caller) -> Entitlement:
        """What this caller may have.

        Raises:
            PeerError: its evidence does not hold.
            AttestationError: nothing matched, but an attestor failed.
            NoIdentityError: nothing matches.
        """
        attestation = await self._attestor.attest(caller)
        matched = self._entries.match(attestation.selectors, self._clock.now())
        # Why somebody got nothing is what operators ask most, and the process may be gone by then.
        log = self._log.debug if matched else self._log.info
        log(
            "caller attested",
            pid=caller.credentials.pid,
            uid=caller.credentials.uid,
            gid=caller.credentials.gid,
            proof=str(caller.proof),
            selectors=sorted(map(str, attestation.selectors)),
            entries=[entry.id for entry in matched],
            notes=list(attestation.notes),
        )
        if attestation.failures:
            self._log.warning(
                "attestor failed",
                pid=caller.credentials.pid,
                uid=caller.credentials.uid,
                failures=dict(attestation.failures),
            )
        if matched:
            return Entitlement(entries=matched, complete=not attestation.failures)
        if attestation.failures:
            raise AttestationError("not every attestor could answer; try again")
        raise NoIdentityError("no registration entry matches the selectors of this process")
