"""X.509-SVIDs by identity: minted once, shared by all who have that identity, renewed in time.

* One SVID and key per identity, whoever asks and however many. Making one never waits, so that two
  who ask at the same time cannot both make one.
* Renewal comes due at half of life, spread by a tenth each way. The moment is drawn once per SVID:
  drawn at every check, the spread would collapse to its early end.
* Only what somebody watches is renewed; the rest is forgotten when it comes due, or at once if it
  was for one process alone.
* What the clock, once it was set back, or a tainted authority makes worthless is not served.
* What was handed out before a restart is handed out again after it, as long as it is good.
* A watcher is told that something changed, never what: it asks again and gets the present state, so
  that a slow reader skips what it missed instead of piling it up.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import Counter, defaultdict
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import TYPE_CHECKING, Protocol

from agent.authority.x509_issuer import X509SvidRequest
from agent.errors import AuthorityError
from agent.signals import NO_SIGNALS, Stage, Stopwatch
from agent.spiffe import keys
from agent.spiffe.keys import KeyType
from agent.svids.x509_svid import X509Svid
from agent.telemetry.throttled_log import ThrottledLog

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from structlog.typing import FilteringBoundLogger

    from agent.authority.signer import X509Signer
    from agent.clock import Clock
    from agent.entries.entry import EntryId
    from agent.entries.identity import Identity
    from agent.signals import Signals

# A workload's key lives an hour; P-256 is quick to make and understood by every client.
WORKLOAD_KEY_TYPE = KeyType.EC_P256
# How often due renewals are looked for. Wall time is compared at each, so that a step of the clock
# or a suspended host is noticed this soon after.
TICK_SECONDS = 1.0
RETRY = timedelta(seconds=10)
# Renewed in one turn of the loop before others get theirs: some four milliseconds of work.
BATCH = 10
# An entry whose SPIFFE ID is filled in, or each of whose processes has a key, gives this many
# identities at a time. They take some 3 KiB each, and a workload may be able to invent them.
MAX_PER_ENTRY = 10_000


class Watcher(Protocol):
    """Who waits for a change: a Wakeup, or an Event."""

    def set(self) -> None:
        """Something has changed."""
        ...


class SvidStore(Protocol):
    """Where SVIDs are put so that they outlast a restart of the agent."""

    def find(self, identity: Identity) -> X509Svid | None:
        """One that verifies now and is not due for renewal, if it is there."""
        ...

    def put(self, identity: Identity, svid: X509Svid) -> None:
        """Put a new one there, in the place of the former. Takes no time and cannot fail."""
        ...


class _Watching:
    """A watcher of some identities, for the block."""

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

    `spread` draws from [-1, 1): where in its spread a renewal falls. `default_ttl` may be changed.
    SVIDs that processes share are put on the `shelf`; without one, none outlasts a restart.
    """

    def __init__(
        self,
        signer: X509Signer,
        clock: Clock,
        default_ttl: timedelta,
        spread: Callable[[], float],
        log: FilteringBoundLogger,
        signals: Signals = NO_SIGNALS,
        store: SvidStore | None = None,
    ) -> None:
        self.default_ttl = default_ttl
        self._store = store
        self._signer = signer
        self._clock = clock
        self._spread = spread
        self._throttled = ThrottledLog(log)
        self._signals = signals
        self._minted: dict[Identity, X509Svid] = {}
        self._per_entry: Counter[EntryId] = Counter()
        self._watchers: defaultdict[Identity, set[Watcher]] = defaultdict(set)
        self._due: list[tuple[datetime, int, Identity]] = []
        self._order = count()
        self._looked_at = datetime.min.replace(tzinfo=UTC)

    def __len__(self) -> int:
        """How many there are."""
        return len(self._minted)

    def get(self, identity: Identity) -> X509Svid:
        """The SVID of an identity: the one that is there while it is fresh, else a new one.

        Raises:
            AuthorityError: there is no valid one and none can be made now.
        """
        svid = self._minted.get(identity)
        now = self._clock.now()
        if svid is not None and now < svid.renew_at and self._is_valid(svid, now):
            return svid
        try:
            return self._take_up(identity, now) or self._mint(identity, now)
        except AuthorityError as error:
            if svid is None or not self._is_valid(svid, now):
                self._schedule(now + RETRY, identity)
                raise
            self._log_not_renewed(identity, error)
            return svid

    @property
    def first_expiry(self) -> datetime | None:
        """When the first of them expires; None if there are none."""
        return min((svid.not_after for svid in self._minted.values()), default=None)

    def known(self, identity: Identity) -> X509Svid | None:
        """The SVID that is there, if there is one."""
        return self._minted.get(identity)

    def watch(
        self, identities: Sequence[Identity], changed: Watcher
    ) -> AbstractContextManager[None]:
        """Have `changed` set when an SVID of these was renewed, or has to be, during a block."""
        return _Watching(identities, changed, self._watch, self._unwatch)

    async def run(self) -> None:
        """Renew what comes due, for ever."""
        while True:
            await self._clock.sleep(TICK_SECONDS)
            try:
                while self.renew_due():  # noqa: ASYNC110 - others have their turn in between
                    await asyncio.sleep(0)
            except Exception:  # noqa: BLE001 - one defect must not end the renewal of all
                self._throttled.exception("internal error", None, where="renewal")

    def renew_due(self) -> bool:
        """Renew some of what is due now and watched; forget what is due and not watched.

        Returns:
            Whether there may be more.
        """
        now = self._clock.now()
        if now < self._looked_at:
            self._look_at_all(now)
        self._looked_at = now
        for _ in range(BATCH):
            if not self._due or self._due[0][0] > now:
                return False
            _due, _order, identity = heapq.heappop(self._due)
            svid = self._minted.get(identity)
            if svid is not None and now < svid.renew_at and self._is_valid(svid, now):
                continue  # renewed meanwhile by one who asked
            if identity in self._watchers:
                self._renew(identity, now)
            else:
                self._forget(identity)
        return True

    def _is_valid(self, svid: X509Svid, now: datetime) -> bool:
        return svid.not_before <= now < svid.not_after and self._signer.trusts(svid.authority_id)

    def _look_at_all(self, now: datetime) -> None:
        """The clock was set back: what was made in the future verifies nowhere."""
        self._due = [
            (svid.renew_at if svid.not_before <= now else now, next(self._order), identity)
            for identity, svid in self._minted.items()
        ]
        heapq.heapify(self._due)

    def _renew(self, identity: Identity, now: datetime) -> None:
        try:
            if identity.expires_at is None or now < identity.expires_at:
                self._mint(identity, now)
            else:
                self._forget(identity)
        except AuthorityError as error:
            self._log_not_renewed(identity, error)
            self._schedule(now + RETRY, identity)
        for changed in self._watchers[identity]:
            changed.set()

    def _log_not_renewed(self, identity: Identity, error: AuthorityError) -> None:
        self._throttled.warning(
            "svid not renewed",
            identity.entry_id,
            entry_id=identity.entry_id,
            reason=str(error),
        )

    def _take_up(self, identity: Identity, now: datetime) -> X509Svid | None:
        """The SVID from before a restart, if it is as good as a new one."""
        svid = None if self._store is None else self._store.find(identity)
        if (
            svid is None
            or not self._is_valid(svid, now)
            or svid.not_after > now + self._ttl(identity)  # they were made shorter meanwhile
        ):
            return None
        self._make_room(identity)
        self._keep(identity, svid)
        return svid

    def _mint(self, identity: Identity, now: datetime) -> X509Svid:
        self._make_room(identity)
        with Stopwatch(self._signals, Stage.MINT_X509):
            svid = self._make(identity, now)
        self._keep(identity, svid)
        # A key that is for one process alone is not for the disk either.
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
            return limit  # a renewal would not last longer
        half = (not_after - now) / 2
        return now + half * (1 + self._spread() / 10)

    # --- what is kept ----------------------------------------------------------------------------

    def _keep(self, identity: Identity, svid: X509Svid) -> None:
        if identity not in self._minted:
            self._per_entry[identity.entry_id] += 1
        self._minted[identity] = svid
        self._schedule(svid.renew_at, identity)

    def _forget(self, identity: Identity) -> None:
        if self._minted.pop(identity, None) is not None:
            self._per_entry[identity.entry_id] -= 1
            self._per_entry += Counter()  # drops the zeros

    def _watch(self, identity: Identity, changed: Watcher) -> None:
        self._watchers[identity].add(changed)

    def _unwatch(self, identity: Identity, changed: Watcher) -> None:
        self._watchers[identity].discard(changed)
        if not self._watchers[identity]:
            del self._watchers[identity]
            if identity.holder:
                self._forget(identity)

    def _make_room(self, identity: Identity) -> None:
        """Bound the identities of one entry; those that nobody watches make room.

        Raises:
            AuthorityError: all of them are in use.
        """
        if identity in self._minted or self._per_entry[identity.entry_id] < MAX_PER_ENTRY:
            return
        of_entry = [each for each in self._minted if each.entry_id == identity.entry_id]
        idle = [each for each in of_entry if each not in self._watchers]
        if not idle:
            raise AuthorityError(
                f"entry {identity.entry_id} gives {MAX_PER_ENTRY} identities already, all in use"
            )
        for each in idle:
            self._forget(each)

    def _schedule(self, due: datetime, identity: Identity) -> None:
        # The running number keeps the heap from comparing identities.
        heapq.heappush(self._due, (due, next(self._order), identity))
        if len(self._due) > 2 * len(self._minted) + BATCH:  # most of them forgotten
            self._look_at_all(datetime.max.replace(tzinfo=UTC))
