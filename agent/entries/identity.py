"""Identities: what an entry gives one process, in the form that SVIDs are issued from.

Two processes with equal identities share their SVIDs. Fields of an entry that no SVID shows, such
as its line or its selectors, are left out: changing those renews and pushes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from agent.entries.entry import Share
from agent.entries.template import SpiffeIdTemplate, TemplateError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime, timedelta

    from agent.entries.entry import Entry, EntryId, EntrySet
    from agent.spiffe.ids import SpiffeId, TrustDomain
    from attestors.api import Selector


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """One identity of a process. A TTL of None means the authority's default.

    The hash is computed once, because identities are dictionary keys on the path of every call.
    Entry, SPIFFE ID and holder distinguish nearly all identities.
    """

    entry_id: EntryId
    spiffe_id: SpiffeId
    x509_svid_ttl: timedelta | None = field(default=None)
    jwt_svid_ttl: timedelta | None = field(default=None)
    dns_names: tuple[str, ...] = field(default=())
    hint: str = field(default="")
    federates_with: tuple[TrustDomain, ...] = field(default=())
    expires_at: datetime | None = field(default=None)
    holder: str = ""
    """The process that this is for, if it shares its X.509 key with no other; else empty."""
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_hash", hash((self.entry_id, self.spiffe_id, self.holder)))

    def __hash__(self) -> int:
        return self._hash


@dataclass(frozen=True, slots=True, kw_only=True)
class Matches:
    """The identities of a process, in order, and the selectors that they rest on."""

    identities: tuple[Identity, ...] = ()
    evidence: frozenset[Selector] = frozenset()
    """The selectors that these identities need."""
    without_id: Mapping[EntryId, str] = field(default_factory=dict)
    """Entries that match but give no SPIFFE ID, each with the reason."""


def match(entries: EntrySet, selectors: frozenset[Selector], holder: str, now: datetime) -> Matches:
    """Return the identities of a process with these selectors at this instant.

    `holder` is a name of the process that no other process since boot has.
    """
    identities: list[Identity] = []
    evidence: frozenset[Selector] = frozenset()
    without_id: dict[EntryId, str] = {}
    for entry in entries.match(selectors, now):
        try:
            spiffe_id, filled_in = _spiffe_id(entry, selectors)
        except TemplateError as error:
            without_id[entry.id] = str(error)
            continue
        identities.append(_identity(entry, spiffe_id, holder))
        evidence |= entry.selectors | filled_in
    return Matches(identities=tuple(identities), evidence=evidence, without_id=without_id)


def _spiffe_id(
    entry: Entry, selectors: frozenset[Selector]
) -> tuple[SpiffeId, frozenset[Selector]]:
    if isinstance(entry.spiffe_id, SpiffeIdTemplate):
        return entry.spiffe_id.fill_in(selectors), entry.spiffe_id.evidence(selectors)
    return entry.spiffe_id, frozenset()


def _identity(entry: Entry, spiffe_id: SpiffeId, holder: str) -> Identity:
    return Identity(
        entry_id=entry.id,
        spiffe_id=spiffe_id,
        x509_svid_ttl=entry.x509_svid_ttl,
        jwt_svid_ttl=entry.jwt_svid_ttl,
        dns_names=entry.dns_names,
        hint=entry.hint,
        federates_with=entry.federates_with,
        expires_at=entry.expires_at,
        holder=holder if entry.share is Share.PROCESS else "",
    )
