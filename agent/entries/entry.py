"""Registration entries: the selectors that a process needs to get a SPIFFE ID.

An entry matches a process if *all* its selectors are among the selectors of the process, until the
entry expires. Order counts: the first match is the default identity. `agent.entries.schema` reads
entries from YAML.

Nothing here opens a file, reads a clock, or issues anything.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, NewType

from agent.entries.index import SelectorIndex

if TYPE_CHECKING:
    from datetime import datetime, timedelta

    from agent.entries.template import SpiffeIdTemplate
    from agent.spiffe.ids import SpiffeId, TrustDomain
    from attestors.api import Selector

EntryId = NewType("EntryId", str)


class Share(StrEnum):
    """Which processes share one X.509-SVID and its private key."""

    ENTRY = "entry"
    """All processes that match the entry."""
    PROCESS = "process"
    """None: each process gets an SVID of its own."""


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

    def has_expired(self, now: datetime) -> bool:
        """Return whether the entry has stopped matching."""
        return self.expires_at is not None and self.expires_at <= now


@dataclass(frozen=True, slots=True)
class EntrySet:
    """The entries in force. Immutable; a reload makes a new set."""

    entries: tuple[Entry, ...] = ()
    _index: SelectorIndex = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        index = SelectorIndex([entry.selectors for entry in self.entries])
        object.__setattr__(self, "_index", index)

    def match(self, selectors: frozenset[Selector], now: datetime) -> tuple[Entry, ...]:
        """Return the unexpired entries whose selectors are all among `selectors`, in order."""
        found = (self.entries[place] for place in self._index.within(selectors))
        return tuple(entry for entry in found if not entry.has_expired(now))
