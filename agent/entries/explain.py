"""Explain which identities a process gets, and what the nearest other entries lack.

An explanation contains selectors of the process and of entries. Values that may be secrets, those
of environment variables, are hidden in it.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.entries.identity import match

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    from agent.entries.entry import Entry, EntryId, EntrySet
    from attestors.api import Selector

# Entries that do not match are shown nearest first; more than three only hide the likeliest one.
NEAREST = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Lacking:
    """A selector that an entry requires, and the process's selectors of the same kind."""

    wanted: str
    found: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Matched:
    """An entry that matches, and the identity that it gives."""

    entry_id: str
    spiffe_id: str
    origin: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Missed:
    """An entry that gives no identity, and every reason for that."""

    entry_id: str
    spiffe_id: str
    origin: str
    lacking: tuple[Lacking, ...] = ()
    expired_at: datetime | None = None
    no_spiffe_id: str = ""
    """Why the entry's template gives no SPIFFE ID."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The result of matching one set of selectors against the entries."""

    selectors: tuple[str, ...]
    matched: tuple[Matched, ...]
    missed: tuple[Missed, ...]
    """Entries that match without giving a SPIFFE ID, then the nearest that do not match."""


def explain(entries: EntrySet, selectors: frozenset[Selector], now: datetime) -> Verdict:
    """Match these selectors at this instant, and explain the result."""
    by_id = {entry.id: entry for entry in entries.match(selectors, now)}
    matches = match(entries, selectors, "", now)
    return Verdict(
        selectors=tuple(sorted(each.redacted() for each in selectors)),
        matched=tuple(
            Matched(
                entry_id=each.entry_id,
                spiffe_id=str(each.spiffe_id),
                origin=by_id[each.entry_id].origin,
            )
            for each in matches.identities
        ),
        missed=(
            *_without_id(by_id, matches.without_id),
            *(_missed(entry, selectors, now) for entry in _nearest(entries, by_id, selectors)),
        ),
    )


def _without_id(by_id: Mapping[EntryId, Entry], reasons: Mapping[EntryId, str]) -> Iterable[Missed]:
    for entry_id, reason in reasons.items():
        entry = by_id[entry_id]
        yield Missed(
            entry_id=entry.id,
            spiffe_id=str(entry.spiffe_id),
            origin=entry.origin,
            no_spiffe_id=reason,
        )


def _nearest(
    entries: EntrySet, matched: Mapping[EntryId, Entry], selectors: frozenset[Selector]
) -> list[Entry]:
    """Return the entries that lack least, of those that share a selector; else the first ones."""
    others = [entry for entry in entries.entries if entry.id not in matched]
    related = [entry for entry in others if entry.selectors & selectors]
    return heapq.nsmallest(NEAREST, related or others, key=lambda e: len(e.selectors - selectors))


def _missed(entry: Entry, selectors: frozenset[Selector], now: datetime) -> Missed:
    return Missed(
        entry_id=entry.id,
        spiffe_id=str(entry.spiffe_id),
        origin=entry.origin,
        lacking=tuple(_lacking(each, selectors) for each in sorted(entry.selectors - selectors)),
        expired_at=entry.expires_at if entry.has_expired(now) else None,
    )


def _lacking(wanted: Selector, selectors: frozenset[Selector]) -> Lacking:
    kind = wanted.type, wanted.kind
    alike = [each.redacted() for each in selectors if (each.type, each.kind) == kind]
    return Lacking(wanted=wanted.redacted(), found=tuple(sorted(alike)))
