"""Why a process gets, or does not get, each identity.

An explanation is made of what was found out anyway: what the attestors said, and how near each
entry came. Values that may be secrets, those of environment variables, are never in it.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    from agent.entries.entry import Entry, EntryId, EntrySet
    from agent.entries.identity import Matches
    from attestors.api import Selector

# Whoever asks why nothing matches wants the likeliest entries, not all of them.
NEAREST = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Lacking:
    """A selector that an entry wants, and what the process has of the same kind instead."""

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
    """An entry that gives nothing, and all the reasons."""

    entry_id: str
    spiffe_id: str
    origin: str
    lacking: tuple[Lacking, ...] = ()
    expired_at: datetime | None = None
    no_spiffe_id: str = ""
    """Why its template gives none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """How a set of selectors fares with the entries."""

    selectors: tuple[str, ...]
    matched: tuple[Matched, ...]
    missed: tuple[Missed, ...]
    """The nearest of those that do not match, and all that match without giving an identity."""


def explain(
    entries: EntrySet, selectors: frozenset[Selector], matches: Matches, now: datetime
) -> Verdict:
    """Explain what `agent.entries.identity.match` said of these selectors."""
    by_id = {entry.id: entry for entry in entries.match(selectors, now)}
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
    """Those of which something holds, what lacks least first; if there is none, the first."""
    others = [entry for entry in entries.entries if entry.id not in matched]
    related = [entry for entry in others if entry.selectors & selectors]
    return heapq.nsmallest(NEAREST, related or others, key=lambda e: len(e.selectors - selectors))


def _missed(entry: Entry, selectors: frozenset[Selector], now: datetime) -> Missed:
    has_expired = entry.expires_at is not None and entry.expires_at <= now
    return Missed(
        entry_id=entry.id,
        spiffe_id=str(entry.spiffe_id),
        origin=entry.origin,
        lacking=tuple(_lacking(each, selectors) for each in sorted(entry.selectors - selectors)),
        expired_at=entry.expires_at if has_expired else None,
    )


def _lacking(wanted: Selector, selectors: frozenset[Selector]) -> Lacking:
    kind = wanted.type, wanted.kind
    alike = [each.redacted() for each in selectors if (each.type, each.kind) == kind]
    return Lacking(wanted=wanted.redacted(), found=tuple(sorted(alike)))
