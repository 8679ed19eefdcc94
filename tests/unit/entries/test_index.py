"""The index compares a process with few of many sets, and is the same at every start."""

from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from typing import ClassVar
from zlib import crc32

import pytest

from agent.entries.index import FEW, SelectorIndex
from attestors.api import Selector


class CountingSet(frozenset[Selector]):
    """Counts subset tests of all its instances."""

    subset_tests: ClassVar[int] = 0

    def __le__(self, other: AbstractSet[object]) -> bool:
        CountingSet.subset_tests += 1
        return super().__le__(other)


@pytest.fixture(autouse=True)
def _count_from_zero() -> None:
    CountingSet.subset_tests = 0


@pytest.mark.parametrize(
    "pairs",
    [
        [("unix:gid:0", f"unix:uid:{n}") for n in range(900)],
        [(f"k8s:ns:{n % 30}", f"k8s:sa:{n // 30}") for n in range(900)],
    ],
    ids=["all sets share one selector", "each selector is in thirty sets"],
)
def test_process_is_compared_with_at_most_a_few_of_many_sets(pairs: list[tuple[str, str]]) -> None:
    sets = [CountingSet(map(Selector.parse, pair)) for pair in pairs]
    index = SelectorIndex(sets)
    for place in (0, 450, 899):
        CountingSet.subset_tests = 0
        assert index.within(frozenset(sets[place])) == [place]
        assert CountingSet.subset_tests <= FEW


class ReorderedSet(CountingSet):
    """Iterates in one order or the other, as frozensets do from one hash seed to the next."""

    def __iter__(self) -> Iterator[Selector]:
        selectors = sorted(super().__iter__())
        backwards = crc32(str(selectors).encode()) % 2
        return iter(selectors[::-1] if backwards else selectors)


def test_index_does_not_depend_on_the_hash_seed() -> None:
    """Arbitrary choices between equally rare selectors would make lookups compare more sets."""
    pairs = [(f"k8s:ns:{n % 16}", f"k8s:sa:{n // 16}") for n in range(256)]
    sets = [ReorderedSet(map(Selector.parse, pair)) for pair in pairs]
    index = SelectorIndex(sets)
    for each in sets:
        index.within(frozenset(frozenset.__iter__(each)))
    assert CountingSet.subset_tests == len(sets)


def test_sets_that_differ_in_nothing_are_all_found() -> None:
    """Many entries may ask for the same selectors: no selector is left to file them by."""
    equal = [frozenset({Selector.parse("unix:uid:1")})] * (FEW + 2)
    wider = frozenset(map(Selector.parse, ("unix:uid:1", "unix:gid:1")))
    index = SelectorIndex([*equal, wider])
    assert index.within(equal[0]) == list(range(FEW + 2))
    assert index.within(wider) == list(range(FEW + 3))
