"""What a caller may have, right now: its selectors, and the registration entries they match."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.errors import AttestationError, NoIdentityError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from structlog.typing import FilteringBoundLogger

    from agent.attestation import Attestation, WorkloadAttestor
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
    """Attests callers and matches them against the registration entries.

    `prove_sender` returns when the caller itself has answered on its connection.
    """

    def __init__(
        self,
        attestor: WorkloadAttestor,
        entries: EntrySet,
        prove_sender: Callable[[Caller], Awaitable[None]],
        clock: Clock,
        log: FilteringBoundLogger,
    ) -> None:
        self._attestor = attestor
        self._entries = entries
        self._prove_sender = prove_sender
        self._clock = clock
        self._log = log

    async def of(self, caller: Caller, *, releasing: bool = True) -> Entitlement:
        """What this caller may have.

        `releasing` says that it is about to get it. If that is because of the program it runs, that
        program must then have answered for itself, while it was the one that was attested: who
        connected could have left the connection to a child, and executed a trusted program.

        Raises:
            PeerError: its evidence does not hold.
            AttestationError: nothing matched, but an attestor failed.
            UnansweredError: nobody answers on the connection.
            NoIdentityError: nothing matches.
        """
        async with self._attestor.attest(caller) as attestation:
            matched = self._entries.match(attestation.selectors, self._clock.now())
            self._log_attested(caller, attestation, matched)
            if releasing and any(entry.selectors & attestation.program for entry in matched):
                await self._prove_sender(caller)
        if matched:
            return Entitlement(entries=matched, complete=not attestation.failures)
        if attestation.failures:
            raise AttestationError("not every attestor could answer; try again")
        raise NoIdentityError("no registration entry matches the selectors of this process")

    def _log_attested(
        self, caller: Caller, attestation: Attestation, matched: tuple[Entry, ...]
    ) -> None:
        # Why somebody got nothing is what operators ask most, and the process may be gone by then.
        log = self._log.debug if matched else self._log.info
        log(
            "caller attested",
            pid=caller.credentials.pid,
            uid=caller.credentials.uid,
            gid=caller.credentials.gid,
            proof=str(caller.proof),
            weaknesses=list(caller.weaknesses),
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
