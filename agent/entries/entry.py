"""Registration entries: which selectors earn a process which SPIFFE ID.

An entry matches a process if *all* its selectors are among the process's, until it expires. Order
means something: the first match is the default identity. `agent.entries.schema` reads
entries from YAML.

Nothing here opens a file, knows the time, or issues anything.
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
    """The entries in force. Immutable; a change of the files makes a new set."""

    entries: tuple[Entry, ...] = ()
    _index: SelectorIndex = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        index = SelectorIndex([entry.selectors for entry in self.entries])
        object.__setattr__(self, "_index", index)

    def match(self, selectors: frozenset[Selector], now: datetime) -> tuple[Entry, ...]:
        """The entries whose selectors are all among `selectors`, in their order, unexpired."""
        found = (self.entries[place] for place in self._index.within(selectors))
        return tuple(entry for entry in found if entry.expires_at is None or now < entry.expires_at)
