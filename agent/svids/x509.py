"""X.509-SVIDs by identity: issued once, shared by all callers with that identity, renewed in time.

* One SVID and one key for each identity. `get` never awaits, so that two callers that ask at the
  same time cannot both cause one to be issued.
* Renewal is due at half of the lifetime, spread by a tenth. The moment is drawn once for each SVID:
  drawn at every check, the spread would collapse to its early end.
* Each identity has at most one due moment in the schedule: renewal of its SVID, or a retry if the
  SVID could not be issued. A new moment replaces it; nothing else removes it but a forgotten SVID.
* Only watched identities are renewed and retried. An unwatched SVID is forgotten when it is due, or
  at once if it belongs to a single process.
* An SVID is not served before its lifetime begins (the clock was set back), after its end, or when
  its authority is tainted.
* An SVID from before a restart is served again while it is valid.
* A watcher is notified that something changed, not of what: it calls `get` again. A slow reader
  thereby skips states that it missed.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Protocol

from agent.authority.x509_template import X509SvidRequest
from agent.errors import AuthorityError
from agent.signals import NO_SIGNALS, Stage, Stopwatch
from agent.spiffe import keys, lifetimes
from agent.spiffe.keys import KeyType
from agent.svids.schedule import Schedule
from agent.svids.x509_svid import X509Svid
from agent.telemetry.throttled_log import ThrottledLog

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from structlog.typing import FilteringBoundLogger

    from agent.authority.signer import Signer
    from agent.clock import Clock
    from agent.entries.entry import EntryId
    from agent.entries.identity import Identity
    from agent.signals import Signals

# A workload's key lives for an hour. P-256 is fast to generate, and every client supports it.
WORKLOAD_KEY_TYPE = KeyType.EC_P256
# How often `run` looks for due renewals. It compares wall time, so that it notices a clock step or
# a suspended host this soon.
TICK_SECONDS = 1.0
RETRY = timedelta(seconds=10)
# Renewals in one turn of the event loop: about four milliseconds of work.
BATCH = 10
# The most identities of one entry at a time. An entry has several if its SPIFFE ID is a template or
# each process has its own key. An identity takes about 3 KiB, and a workload may be able to invent
# template values.
MAX_PER_ENTRY = 10_000


class Watcher(Protocol):
    """The event that a watcher waits for: a Wakeup or an asyncio.Event."""

    def set(self) -> None:
        """Note a change."""
        ...


class SvidStore(Protocol):
    """A store that keeps SVIDs over a restart of the agent."""

    def find(self, identity: Identity) -> X509Svid | None:
        """The stored SVID of an identity, if it verifies now and is not due for renewal."""
        ...

    def put(self, identity: Identity, svid: X509Svid) -> None:
        """Replace the stored SVID of an identity. Returns at once and cannot fail."""
        ...


class _Watching:
    """A watcher of some identities, for the duration of a block."""

    __slots__ = ("_begin", "_changed", "_end", "_identities")

    def __init__(
        self,
        identities: Sequence[Identity],
        changed: Watcher,
        begin: Callable[[Identity, Watcher], None],
        end: Callable[[Identity, Watcher], None],
    ) -> None:
        self._identities = identities
        self._changed = changed
        self._begin = begin
        self._end = end

    def __enter__(self) -> None:
        for identity in self._identities:
            self._begin(identity, self._changed)

    def __exit__(self, *_error: object) -> None:
        for identity in self._identities:
            self._end(identity, self._changed)


class X509Svids:
    """The X.509-SVIDs of all identities.

    Args:
        signer: the authority that issues the SVIDs.
        clock: wall time.
        default_ttl: lifetime of SVIDs whose entry gives none. A reload may change it.
        spread: draws from [-1, 1): where in its spread a renewal falls.
        log: receives failed renewals.
        signals: receives the time that issuing takes.
        store: keeps SVIDs over a restart; without a store, none survives.
        max_per_entry: the most identities of one entry.
    """

    def __init__(
        self,
        signer: Signer,
        clock: Clock,
        default_ttl: timedelta,
        spread: Callable[[], float],
        log: FilteringBoundLogger,
        signals: Signals = NO_SIGNALS,
        store: SvidStore | None = None,
        *,
        max_per_entry: int = MAX_PER_ENTRY,
    ) -> None:
        self.default_ttl = default_ttl
        self._store = store
        self._signer = signer
        self._clock = clock
        self._spread = spread
        self._throttled = ThrottledLog(log)
        self._signals = signals
        self._max_per_entry = max_per_entry
        self._issued: dict[Identity, X509Svid] = {}
        self._per_entry: Counter[EntryId] = Counter()
        self._watchers: defaultdict[Identity, set[Watcher]] = defaultdict(set)
        # The keys are the identities with an SVID, and those whose SVID a watcher misses.
        self._due: Schedule[Identity] = Schedule()
        self._checked_at = datetime.min.replace(tzinfo=UTC)

    def __len__(self) -> int:
        """How many SVIDs there are."""
        return len(self._issued)

    def get(self, identity: Identity) -> X509Svid:
        """The SVID of an identity: the present one while it is fresh, else a new one.

        Raises:
            AuthorityError: there is no valid SVID and none can be issued now.
        """
        svid = self._issued.get(identity)
        now = self._clock.now()
        if svid is not None and now < svid.renew_at and self._is_valid(svid, now):
            return svid
        others_have_older = identity in self._due
        try:
            new = self._restore(identity, now) or self._issue(identity, now)
        except AuthorityError as error:
            if svid is None or not self._is_valid(svid, now):
                self._retry_for_watchers(identity, now)
                raise
            self._log_not_renewed(identity, error)
            return svid
        if others_have_older:
            self._notify(identity)
        return new

    @property
    def first_expiry(self) -> datetime | None:
        """When the first SVID expires; None if there are none."""
        return min((svid.not_after for svid in self._issued.values()), default=None)

    def known(self, identity: Identity) -> X509Svid | None:
        """The present SVID of an identity, if it has one. Issues nothing."""
        return self._issued.get(identity)

    def watch(
        self, identities: Sequence[Identity], changed: Watcher
    ) -> AbstractContextManager[None]:
        """During a block, set `changed` when the SVID of one of these identities may be another."""
        return _Watching(identities, changed, self._watch, self._unwatch)

    async def run(self) -> None:
        """Renew due SVIDs until cancelled."""
        while True:
            await self._clock.sleep(TICK_SECONDS)
            try:
                while self.renew_due():  # noqa: ASYNC110 - calls run in between
                    await asyncio.sleep(0)
            except Exception:  # noqa: BLE001 - one defect must not end the renewal of all
                self._throttled.exception("internal error", None, where="renewal")

    def renew_due(self) -> bool:
        """Renew up to BATCH due SVIDs that are watched; forget those that are not.

        Returns:
            Whether more may be due.
        """
        now = self._clock.now()
        if now < self._checked_at:
            self._due.reset(lambda identity: self._moment(identity, now))
        self._checked_at = now
        for _ in range(BATCH):
            identity = self._due.pop_due(now)
            if identity is None:
                return False
            if identity in self._watchers:
                self._renew(identity, now)
            else:
                self._forget(identity)
        return True

    def _is_valid(self, svid: X509Svid, now: datetime) -> bool:
        return svid.not_before <= now < svid.not_after and self._signer.trusts(svid.authority_id)

    def _moment(self, identity: Identity, now: datetime) -> datetime:
        """The due moment after the clock was set back: an SVID from the future verifies nowhere."""
        svid = self._issued.get(identity)
        return svid.renew_at if svid is not None and self._is_valid(svid, now) else now

    def _renew(self, identity: Identity, now: datetime) -> None:
        self._due.set(identity, now + RETRY)  # stands, whatever error follows
        try:
            if identity.expires_at is None or now < identity.expires_at:
                self._issue(identity, now)
            else:
                self._forget(identity)
        except AuthorityError as error:
            self._log_not_renewed(identity, error)
        self._notify(identity)

    def _log_not_renewed(self, identity: Identity, error: AuthorityError) -> None:
        entry_id = identity.entry_id
        self._throttled.warning("svid not renewed", entry_id, entry_id=entry_id, reason=str(error))

    def _retry_for_watchers(self, identity: Identity, now: datetime) -> None:
        if identity in self._watchers:
            self._due.set_no_later(identity, now + RETRY)

    def _notify(self, identity: Identity) -> None:
        for changed in self._watchers.get(identity, ()):
            changed.set()

    def _restore(self, identity: Identity, now: datetime) -> X509Svid | None:
        """The SVID from before a restart, if it is as good as a new one."""
        svid = None if self._store is None else self._store.find(identity)
        if (
            svid is None
            or not self._is_valid(svid, now)
            or svid.not_after > now + self._ttl(identity)  # the operator has shortened the TTL
        ):
            return None
        self._make_room(identity)
        self._keep(identity, svid)
        return svid

    def _issue(self, identity: Identity, now: datetime) -> X509Svid:
        self._make_room(identity)
        with Stopwatch(self._signals, Stage.MINT_X509):
            svid = self._make(identity, now)
        self._keep(identity, svid)
        # The key of a single process is useless after a restart: the process has another holder.
        if self._store is not None and not identity.holder:
            self._store.put(identity, svid)
        return svid

    def _make(self, identity: Identity, now: datetime) -> X509Svid:
        key = keys.generate(WORKLOAD_KEY_TYPE)
        certificate = self._signer.sign_x509(
            X509SvidRequest(
                spiffe_id=identity.spiffe_id,
                public_key=key.public_key(),
                ttl=self._ttl(identity),
                dns_names=identity.dns_names,
                not_after_limit=identity.expires_at,
            )
        )
        renew_at = self._draw_renewal(identity, now, certificate.not_valid_after_utc)
        return X509Svid.of(identity, certificate, key, renew_at)

    def _ttl(self, identity: Identity) -> timedelta:
        return identity.x509_svid_ttl or self.default_ttl

    def _draw_renewal(self, identity: Identity, now: datetime, not_after: datetime) -> datetime:
        limit = identity.expires_at
        if limit is not None and not_after >= limit.replace(microsecond=0):
            return limit  # a renewed SVID would not last longer
        return lifetimes.renewal(now, not_after, self._spread())

    # --- what is kept ----------------------------------------------------------------------------

    def _keep(self, identity: Identity, svid: X509Svid) -> None:
        if identity not in self._issued:
            self._per_entry[identity.entry_id] += 1
        self._issued[identity] = svid
        self._due.set(identity, svid.renew_at)

    def _forget(self, identity: Identity) -> None:
        self._due.cancel(identity)
        if self._issued.pop(identity, None) is not None:
            self._per_entry[identity.entry_id] -= 1
            self._per_entry += Counter()  # drops the zeros

    def _watch(self, identity: Identity, changed: Watcher) -> None:
        self._watchers[identity].add(changed)

    def _unwatch(self, identity: Identity, changed: Watcher) -> None:
        self._watchers[identity].discard(changed)
        if not self._watchers[identity]:
            del self._watchers[identity]
            if identity.holder or identity not in self._issued:
                self._forget(identity)

    def _make_room(self, identity: Identity) -> None:
        """Bound the identities of one entry: forget its unwatched SVIDs.

        Raises:
            AuthorityError: all SVIDs of the entry are watched.
        """
        if identity in self._issued or self._per_entry[identity.entry_id] < self._max_per_entry:
            return
        of_entry = [each for each in self._issued if each.entry_id == identity.entry_id]
        unwatched = [each for each in of_entry if each not in self._watchers]
        if not unwatched:
            raise AuthorityError(
                f"entry {identity.entry_id} already has {self._max_per_entry} identities in use,"
                " which is the limit"
            )
        for each in unwatched:
            self._forget(each)
