"""An entry matches a process that has all its selectors, until it expires."""

from datetime import UTC, datetime, timedelta

import pytest

from agent.entries.entry import Entry, EntryId, EntrySet
from agent.spiffe.ids import SpiffeId, TrustDomain
from attestors.api import Selector

NOW = datetime(2026, 6, 1, tzinfo=UTC)


def _selectors(*texts: str) -> frozenset[Selector]:
    return frozenset(map(Selector.parse, texts))


def _entry(name: str, *selectors: str, expires_at: datetime | None = None) -> Entry:
    return Entry(
        id=EntryId(name),
        spiffe_id=SpiffeId(TrustDomain("example.org"), f"/{name}"),
        selectors=_selectors(*selectors),
        expires_at=expires_at,
    )


ENTRIES = EntrySet(
    (
        _entry("both", "unix:uid:1", "unix:gid:1"),
        _entry("other", "unix:uid:2"),
        _entry("uid", "unix:uid:1"),
        _entry("expired", "unix:uid:1", expires_at=NOW),
        _entry("expiring", "unix:gid:1", expires_at=NOW + timedelta(seconds=1)),
    )
)


@pytest.mark.parametrize(
    ("process", "matched"),
    [
        (["unix:uid:1", "unix:gid:1", "unix:user:joe"], ["both", "uid", "expiring"]),
        (["unix:uid:1"], ["uid"]),
        (["unix:gid:1"], ["expiring"]),
        (["unix:uid:3"], []),
        ([], []),
    ],
)
def test_entry_matches_if_the_process_has_all_its_selectors(
    process: list[str], matched: list[str]
) -> None:
    assert [entry.id for entry in ENTRIES.match(_selectors(*process), NOW)] == matched


def test_equal_entries_make_equal_sets() -> None:
    assert EntrySet(ENTRIES.entries) == ENTRIES
    assert EntrySet() != ENTRIES
