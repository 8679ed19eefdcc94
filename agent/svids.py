"""X.509-SVIDs by registration entry: minted once, shared by all its callers, renewed in time.

* One SVID and key per entry, whoever asks and however many.
* Renewal comes due at half of life, spread by a tenth each way. The moment is drawn once per SVID:
  drawn at every check, the spread would collapse to its early end.
* Only what somebody watches is renewed; the rest is forgotten when it comes due.
* A watcher is told that something changed, never what: it asks again and gets the present state, so
  that a slow reader skips what it missed instead of piling it up.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import count
from typing import TYPE_CHECKING, Protocol

from cryptography.hazmat.primitives.serialization import Encoding

from agent import keys
from agent.errors import AuthorityError
from agent.issuance import X509SvidRequest
from agent.keys import KeyType

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from datetime import datetime

    from cryptography import x509
    from structlog.typing import FilteringBoundLogger

    from agent.clock import Clock
    from agent.entries import Entry, EntryId

# A workload's key lives an hour; P-256 is quick to make and understood by every client.
WORKLOAD_KEY_TYPE = KeyType.EC_P256
# How often due renewals are looked for. Wall time is compared at each, so that a step of the clock
# or a suspended host is noticed this soon after.
TICK_SECONDS = 1.0
RETRY = timedelta(seconds=10)


class X509Signer(Protocol):
    """What is needed of the authority."""

    def sign_x509(self, request: X509SvidRequest) -> x509.Certificate:
        """Sign.

        Raises:
            AuthorityError: it cannot, or refuses.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class X509Svid:
    """An X.509-SVID with its key, in the forms that go over the wire."""

    spiffe_id: str
    hint: str
    chain_der: bytes
    key_der: bytes
    serial: int
    not_after: datetime
    renew_at: datetime


class Svids:
    """The X.509-SVIDs of all entries.

    `spread` draws from [-1, 1): where in its spread a renewal falls.
    """

    def __init__(
        self,
        signer: X509Signer,
        clock: Clock,
        default_ttl: timedelta,
        spread: Callable[[], float],
        log: FilteringBoundLogger,
    ) -> None:
        self._signer = signer
        self._clock = clock
        self._default_ttl = default_ttl
        self._spread = spread
        self._log = log
        self._minted: dict[EntryId, X509Svid] = {}
        self._watchers: defaultdict[EntryId, set[asyncio.Event]] = defaultdict(set)
        self._ending: set[EntryId] = set()
        self._everybody: set[asyncio.Event] = set()
        self._due: list[tuple[datetime, int, Entry]] = []
        self._order = count()

    def get(self, entry: Entry) -> X509Svid:
        """The entry's SVID: the one that is there while it is fresh, else a new one.

        Raises:
            AuthorityError: there is no valid one and none can be made now.
        """
        svid = self._minted.get(entry.id)
        now = self._clock.now()
        if svid is not None and now < svid.renew_at:
            return svid
        try:
            return self._mint(entry, now)
        except AuthorityError as error:
            if svid is None or svid.not_after <= now:
                raise
            self._log.warning("svid not renewed", entry=entry.id, reason=str(error))
            return svid

    @contextmanager
    def watch(self, entries: Sequence[Entry]) -> Iterator[asyncio.Event]:
        """An event that is set when an SVID of these changed, one expired, and by `wake_all`."""
        changed = asyncio.Event()
        self._everybody.add(changed)
        for entry in entries:
            self._watchers[entry.id].add(changed)
            self._schedule_end(entry)
        try:
            yield changed
        finally:
            self._everybody.discard(changed)
            for entry in entries:
                self._watchers[entry.id].discard(changed)
                if not self._watchers[entry.id]:
                    del self._watchers[entry.id]

    def wake_all(self) -> None:
        """Tell every watcher, because something that concerns all of them changed."""
        for changed in self._everybody:
            changed.set()

    async def run(self) -> None:
        """Renew what comes due, for ever."""
        while True:
            await self._clock.sleep(TICK_SECONDS)
            try:
                self.renew_due()
            except Exception:  # noqa: BLE001 - one defect must not end the renewal of all
                self._log.exception("renewal broke")

    def renew_due(self) -> None:
        """Renew what is due now and watched; forget what is due and not watched."""
        now = self._clock.now()
        while self._due and self._due[0][0] <= now:
            _due, _order, entry = heapq.heappop(self._due)
            svid = self._minted.get(entry.id)
            if svid is not None and svid.renew_at > now:
                continue  # renewed meanwhile by one who asked
            if entry.id not in self._watchers:
                self._minted.pop(entry.id, None)
                continue
            self._renew(entry, now)

    def _renew(self, entry: Entry, now: datetime) -> None:
        try:
            if entry.expires_at is not None and entry.expires_at <= now:
                self._minted.pop(entry.id, None)
                self._ending.discard(entry.id)
            else:
                self._mint(entry, now)
        except AuthorityError as error:
            self._log.warning("svid not renewed", entry=entry.id, reason=str(error))
            self._schedule(now + RETRY, entry)
        for changed in self._watchers[entry.id]:
            changed.set()

    def _mint(self, entry: Entry, now: datetime) -> X509Svid:
        key = keys.generate(WORKLOAD_KEY_TYPE)
        certificate = self._signer.sign_x509(
            X509SvidRequest(
                spiffe_id=entry.spiffe_id,
                public_key=key.public_key(),
                ttl=entry.x509_svid_ttl or self._default_ttl,
                dns_names=entry.dns_names,
                not_after_limit=entry.expires_at,
            )
        )
        svid = X509Svid(
            spiffe_id=str(entry.spiffe_id),
            hint=entry.hint,
            chain_der=certificate.public_bytes(Encoding.DER),
            key_der=keys.to_pkcs8_der(key),
            serial=certificate.serial_number,
            not_after=certificate.not_valid_after_utc,
            renew_at=self._draw_renewal(entry, now, certificate.not_valid_after_utc),
        )
        self._minted[entry.id] = svid
        self._schedule(svid.renew_at, entry)
        return svid

    def _draw_renewal(self, entry: Entry, now: datetime, not_after: datetime) -> datetime:
        if entry.expires_at is not None and not_after >= entry.expires_at.replace(microsecond=0):
            return entry.expires_at  # a renewal would not last longer
        half = (not_after - now) / 2
        return now + half * (1 + self._spread() / 10)

    def _schedule_end(self, entry: Entry) -> None:
        if entry.expires_at is not None and entry.id not in self._ending:
            self._ending.add(entry.id)
            self._schedule(entry.expires_at, entry)

    def _schedule(self, due: datetime, entry: Entry) -> None:
        # The running number keeps the heap from comparing entries.
        heapq.heappush(self._due, (due, next(self._order), entry))
