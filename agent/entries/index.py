"""An index of selector sets: finds the sets that a process's selectors contain.

Each set is filed under its rarest selector, so a selector that all sets share (`unix:gid:0`) costs
nothing as long as the sets have a rarer one too. More than `few` sets under one selector, such as
the sets of one Kubernetes namespace, are filed again by their next rarest selector, and so on. A
lookup follows the process's own selectors and compares only the sets that it reaches.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from attestors.api import Selector

# Comparing this many sets costs less than one more lookup of all selectors of a process.
FEW = 8
# Sets that still share a node at this depth are compared one by one. Bounds the recursion.
MAX_DEPTH = 8


@dataclass(frozen=True, slots=True)
class _Node:
    """Sets that have some selectors in common, filed by another of their selectors."""

    by_selector: dict[Selector, _Child] = field(default_factory=dict)
    complete: list[int] = field(default_factory=list)
    """Sets without another selector."""


_Child: TypeAlias = "_Node | list[int]"


class SelectorIndex:
    """An index of sets of selectors. A set is named by its place in `sets`."""

    def __init__(
        self, sets: Sequence[frozenset[Selector]], *, few: int = FEW, max_depth: int = MAX_DEPTH
    ) -> None:
        self._sets = sets
        self._few = few
        self._max_depth = max_depth
        self._root = self._file(range(len(sets)), frozenset())

    def within(self, selectors: frozenset[Selector]) -> list[int]:
        """Return the places of all sets that are subsets of `selectors`, in ascending order."""
        sets, candidates = self._sets, self._candidates(selectors)
        return sorted([place for place in candidates if sets[place] <= selectors])

    def _candidates(self, selectors: Iterable[Selector]) -> list[int]:
        found: list[int] = []
        nodes = [self._root]
        for node in nodes:  # grows inside the loop
            found += node.complete
            look_up = node.by_selector.get
            for selector in selectors:
                child = look_up(selector)
                if isinstance(child, list):
                    found += child
                elif child is not None:
                    nodes.append(child)
        return found

    def _file(self, places: Sequence[int], common: frozenset[Selector]) -> _Node:
        """File these sets, which all contain `common`, by their rarest other selector."""
        others = [self._sets[place] - common for place in places] if common else self._sets
        rarity = _rarity(others)
        node, by_rarest = _Node(), defaultdict(list)
        for place, selectors in zip(places, others, strict=True):
            if selectors:
                by_rarest[min(selectors, key=rarity.__getitem__)].append(place)
            else:
                node.complete.append(place)
        node.by_selector.update(by_rarest)
        for selector, together in by_rarest.items():
            if len(together) > self._few and len(common) < self._max_depth - 1:
                node.by_selector[selector] = self._file(together, common | {selector})
        return node


def _rarity(sets: Iterable[frozenset[Selector]]) -> dict[Selector, tuple[int, str, str]]:
    """Return a sort key for each selector: first the number of sets that have it.

    The text settles ties. The order of a frozenset would not do: it follows Python's random hash
    seed, so one configuration would give another index, with other costs, at each start.
    """
    counts = Counter(chain.from_iterable(sets))
    return {each: (count, each.type, each.value) for each, count in counts.items()}
