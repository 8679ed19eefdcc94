"""Matching: the time to find a caller's entries among few and among very many."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

from agent.entries.entry import Entry, EntryId, EntrySet
from agent.spiffe.ids import SpiffeId, TrustDomain
from attestors.api import Selector
from tests.bench.findings import OURS, Budget, Finding

SIZES = (10, 1000, 100_000, 1_000_000)
ROUNDS = 5
MATCHES = 1000
SELECTORS = 10
"""The number of a caller's selectors."""
BUDGET_SIZE, BUDGET_US = 100_000, 20.0
MATCH, INDEX = "match of one caller, µs", "making the index, s"
_NOW = datetime(2026, 1, 1, tzinfo=UTC)
_ID = SpiffeId(TrustDomain("example.org"), "/w")


def _rare(number: int, _side: int) -> Iterator[str]:
    """Yield the selectors of an entry: one unique selector, and one shared by all entries."""
    yield f"own:{number}"
    yield "everybody"


def _shared(number: int, side: int) -> Iterator[str]:
    """Yield a namespace and an account; each is in as many entries as there are selectors."""
    yield f"namespace:{number // side}"
    yield f"account:{number % side}"


KINDS: dict[str, Callable[[int, int], Iterator[str]]] = {
    "match among entries, each with a rare selector": _rare,
    "match among entries that share common selectors": _shared,
}


def measure() -> list[Finding]:
    """Measure each kind of entries at each size."""
    return [
        finding
        for scenario, kind in KINDS.items()
        for size in SIZES
        for finding in _measure(scenario, kind, size)
    ]


def _measure(
    scenario: str, kind: Callable[[int, int], Iterator[str]], size: int
) -> Iterator[Finding]:
    side = math.isqrt(size - 1) + 1
    gc.disable()  # the collector would scan a million live objects
    entries = tuple(
        Entry(id=EntryId(str(number)), spiffe_id=_ID, selectors=_selectors(kind(number, side)))
        for number in range(size)
    )
    gc.enable()
    began = time.process_time()
    made = EntrySet(entries)
    index = time.process_time() - began
    caller = _selectors(kind(size // 2, side))
    caller |= _selectors(f"other:{n}" for n in range(SELECTORS - len(caller)))
    assert len(made.match(caller, _NOW)) == 1
    yield Finding(
        scenario=scenario,
        measure=MATCH,
        size=size,
        values={OURS: [_microseconds(made, caller) for _ in range(ROUNDS)]},
        budget=Budget(most=BUDGET_US) if size == BUDGET_SIZE else None,
    )
    yield Finding(scenario=scenario, measure=INDEX, size=size, values={OURS: [index]})


def _selectors(values: Iterator[str]) -> frozenset[Selector]:
    return frozenset(Selector("test", value) for value in values)


def _microseconds(entries: EntrySet, caller: frozenset[Selector]) -> float:
    began = time.process_time()
    for _ in range(MATCHES):
        entries.match(caller, _NOW)
    return (time.process_time() - began) / MATCHES * 1e6
