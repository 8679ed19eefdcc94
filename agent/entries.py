"""Registration entries: which selectors earn a process which SPIFFE ID.

An entry matches a process if *all* its selectors are among the process's, until it expires. Order
means something: the first match is the default identity. `agent.entry_yaml` reads entries from what
operators write.

Nothing here opens a file, knows the time, or issues anything.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, NewType

if TYPE_CHECKING:
    from datetime import datetime, timedelta

    from agent.spiffe import SpiffeId, TrustDomain
    from agent.templates import SpiffeIdTemplate
    from attestors.api import Selector

EntryId = NewType("EntryId", str)


class Share(StrEnum):
    """Who has one X.509-SVID, with its private key, together."""

    ENTRY = "entry"
    """All processes that match the entry."""
    PROCESS = "process"
    """Nobody: each process has its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One registration entry. A TTL of None means the authority's default."""

    id: EntryId
    spiffe_id: SpiffeId | SpiffeIdTemplate
    selectors: frozenset[Selector]
    x509_svid_ttl: timedelta | None = None
    jwt_svid_ttl: timedelta | None = None
    dns_names: tuple[str, ...] = ()
    hint: str = ""
    federates_with: tuple[TrustDomain, ...] = ()
    expires_at: datetime | None = None
    """The entry stops matching at this instant (UTC)."""
    share: Share = Share.ENTRY
    origin: str = ""
    """`file:line`, for operators."""


@dataclass(frozen=True, slots=True)
class EntrySet:
    """The entries in force. Immutable; a change of the files makes a new set.

    Each entry is filed under whichever of its selectors the fewest entries have, so that a selector
    that everybody has (`unix:gid:0`) costs nothing as long as entries also say something rarer.
    """

    entries: tuple[Entry, ...] = ()
    _by_rarest: dict[Selector, list[int]] = field(
        init=False, repr=False, compare=False, default_factory=dict
    )

    def __post_init__(self) -> None:
        counts = Counter(selector for entry in self.entries for selector in entry.selectors)
        for number, entry in enumerate(self.entries):
            rarest = min(entry.selectors, key=counts.__getitem__)
            self._by_rarest.setdefault(rarest, []).append(number)

    def match(self, selectors: frozenset[Selector], now: datetime) -> tuple[Entry, ...]:
        """The entries whose selectors are all among `selectors`, in their order, unexpired."""
        numbers = (n for selector in selectors for n in self._by_rarest.get(selector, ()))
        candidates = [self.entries[number] for number in sorted(numbers)]
        return tuple(
            entry
            for entry in candidates
            if entry.selectors <= selectors and (entry.expires_at is None or now < entry.expires_at)
        )
