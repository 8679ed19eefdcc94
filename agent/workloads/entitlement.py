"""Entitlement: the identities of a caller now, by its attestation and the entries in force."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from cachetools import LRUCache

from agent.attestation.attestor import KNOWN_PROCESSES
from agent.entries.explain import explain
from agent.entries.identity import match
from agent.errors import AttestationError, NoIdentityError
from agent.signals import NO_SIGNALS, Stage, Stopwatch
from agent.telemetry.plain import to_plain
from agent.telemetry.throttled_log import PER_KEY, Rate, Throttle, ThrottledLog

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from datetime import datetime

    from structlog.typing import FilteringBoundLogger

    from agent.attestation.attestor import WorkloadAttestor
    from agent.attestation.result import Attested
    from agent.clock import Clock
    from agent.entries.entry import EntrySet
    from agent.entries.explain import Verdict
    from agent.entries.identity import Identity, Matches
    from agent.kernel.caller import Caller
    from agent.signals import Signals
    from attestors.api import Selector


@dataclass(frozen=True, slots=True, kw_only=True)
class Entitlement:
    """The identities of a caller now, in the order of the entries: the first is its default.

    `attestation` is the evidence for them; None for a verifier without an identity.
    """

    identities: tuple[Identity, ...]
    attestation: Attested | None = None
    ends_at: datetime | None = field(init=False)
    """The end of the first entry that ends; None if none does."""

    def __post_init__(self) -> None:
        ends = [each.expires_at for each in self.identities if each.expires_at is not None]
        object.__setattr__(self, "ends_at", min(ends, default=None))

    @property
    def complete(self) -> bool:
        """Whether every attestor answered. If not, further identities may match later."""
        return self.attestation is None or not self.attestation.failures


@dataclass(slots=True)
class _Matched:
    """The result of a match, with its arguments, and the entitlement that was made of it."""

    entries: EntrySet
    selectors: frozenset[Selector]
    at: datetime
    matches: Matches
    entitlement: Entitlement | None = None

    def by(self, attestation: Attested) -> Entitlement:
        """Return the entitlement by an attestation with these selectors."""
        known = self.entitlement
        if known is None or known.attestation is not attestation:
            known = Entitlement(identities=self.matches.identities, attestation=attestation)
            self.entitlement = known
        return known

    def still_holds(self, entries: EntrySet, selectors: frozenset[Selector], now: datetime) -> bool:
        """Return whether a match now has the same result. Only identical objects count as equal."""
        if self.entries is not entries or self.selectors is not selectors:
            return False
        return (
            self.at <= now
            and not self.matches.without_id
            and all(
                each.expires_at is None or now < each.expires_at for each in self.matches.identities
            )
        )


class Entitlements:
    """Attests callers and matches them against `entries`, which may be replaced at any time.

    Args:
        attestor: finds the selectors of a caller.
        entries: the entries in force.
        prove_sender: returns when the caller has proved that it sends on its own connection.
        clock: for the ends of entries.
        log: says why a caller matches nothing.
        signals: get the duration of each match.
        lines_per_user: the limit of log lines that one user may cause.
    """

    def __init__(
        self,
        attestor: WorkloadAttestor,
        entries: EntrySet,
        prove_sender: Callable[[Caller], Awaitable[None]],
        clock: Clock,
        log: FilteringBoundLogger,
        signals: Signals = NO_SIGNALS,
        lines_per_user: Rate = PER_KEY,
    ) -> None:
        self.entries = entries
        self.log_each = False
        """Whether each release of identities is logged, at level `debug`."""
        self._signals = signals
        self._attestor = attestor
        self._prove_sender = prove_sender
        self._clock = clock
        self._log = log
        self._throttled = ThrottledLog(log, lines_per_user)
        self._explained = Throttle(lines_per_user)
        self._matched: WeakKeyDictionary[Caller, _Matched] = WeakKeyDictionary()
        # For the next connection of a process, whose selectors are the same object.
        self._by_process: LRUCache[str, _Matched] = LRUCache(KNOWN_PROCESSES)

    async def of(self, caller: Caller, *, releasing: bool = True) -> Entitlement:
        """Attest a caller, match it against the entries, and return its identities.

        `releasing`: the caller is about to get SVIDs or bundles. If an identity rests on its
        program, the caller must then prove that it sends on this connection itself, while it runs
        the attested program: a process could leave its connection to a child and execute a trusted
        program.

        Raises:
            PeerError: the evidence does not hold.
            AttestationError: nothing matches, and an attestor failed.
            UnansweredError: the caller did not prove that it sends.
            NoIdentityError: nothing matches.
        """
        attesting = self._attestor.attest(caller)
        async with attesting as attestation:
            with Stopwatch(self._signals, Stage.MATCH):
                matched = self._match(caller, attestation, self.entries)
            if attestation.failures:
                self._log_failures(caller, attestation)
            if releasing and self.log_each:  # reviews of idle streams would fill the log
                self._log_attested(caller, attestation, matched.matches)
            if releasing and matched.matches.evidence & attestation.program:
                attesting.note_question()
                await self._prove_sender(caller)
                # The entries may have changed during the wait.
                matched = self._match(caller, attestation, self.entries)
        if matched.matches.identities:
            return matched.by(attestation)
        self._log_denied(caller, attestation)
        if attestation.failures:
            raise AttestationError("not every attestor could answer; try again")
        raise NoIdentityError("no registration entry matches the selectors of this process")

    def matches(
        self, caller: Caller, attestation: Attested, entries: EntrySet | None = None
    ) -> Matches:
        """Match an attested caller against the entries in force, or against others."""
        entries = self.entries if entries is None else entries
        return self._match(caller, attestation, entries).matches

    def _match(self, caller: Caller, attestation: Attested, entries: EntrySet) -> _Matched:
        selectors, now = attestation.selectors, self._clock.now()
        known = self._matched.get(caller)
        if known is None:
            known = self._by_process.get(caller.process.name)
        elif known.still_holds(entries, selectors, now):
            return known
        if known is None or not known.still_holds(entries, selectors, now):
            matches = match(entries, selectors, caller.process.name, now)
            known = _Matched(entries, selectors, now, matches)
            self._by_process[caller.process.name] = known
        self._matched[caller] = known
        return known

    def explain(self, attestation: Attested) -> Verdict:
        """Explain for each near entry why it does, or does not, match these selectors now."""
        return explain(self.entries, attestation.selectors, self._clock.now())

    def _log_attested(self, caller: Caller, attestation: Attested, matches: Matches) -> None:
        self._log.debug(
            "caller attested",
            pid=caller.credentials.pid,
            uid=caller.credentials.uid,
            gid=caller.credentials.gid,
            proof=str(caller.proof),
            weaknesses=list(caller.weaknesses),
            selectors=sorted(each.redacted() for each in attestation.selectors),
            entry_ids=[identity.entry_id for identity in matches.identities],
            notes=list(attestation.notes),
        )

    def _log_failures(self, caller: Caller, attestation: Attested) -> None:
        uid = caller.credentials.uid
        self._throttled.warning(
            "attestor failed",
            uid,
            pid=caller.credentials.pid,
            uid=uid,
            failures=dict(attestation.failures),
        )

    def _log_denied(self, caller: Caller, attestation: Attested) -> None:
        """Log why nothing matched: the process may exit before an operator asks `explain`."""
        uid = caller.credentials.uid
        # Before the explanation: to find the nearest of 100,000 entries takes some 50 ms.
        suppressed = self._explained.admit(uid)
        if suppressed is None:
            return
        verdict = explain(self.entries, attestation.selectors, self._clock.now())
        self._log.info(
            "no identity issued",
            pid=caller.credentials.pid,
            uid=uid,
            gid=caller.credentials.gid,
            proof=str(caller.proof),
            weaknesses=list(caller.weaknesses),
            notes=list(attestation.notes),
            **to_plain(verdict),
            **suppressed,
        )
