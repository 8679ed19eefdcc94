"""Which of very many sets of selectors lie within the selectors of one process.

A set is filed under its rarest selector, so that one that everybody has (`unix:gid:0`) costs
nothing as long as sets also say something rarer. Where many sets share their rarest selector, as
those of a namespace do, they are filed again among themselves under the next one, and so on. A
process is led only to sets of which it has every selector that they are filed under; those are
compared in whole.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from attestors.api import Selector

# To compare so many takes less than to look up all selectors of a process once more.
FEW = 8
# What is still together after so many selectors in common is compared. It bounds the recursion.
DEEPEST = 8


@dataclass(frozen=True, slots=True)
class _Drawer:
    """Sets that have some selectors in common, filed by another of theirs."""

    by_selector: dict[Selector, _Node] = field(default_factory=dict)
    rest: list[int] = field(default_factory=list)
    """Those that have no other."""


_Node: TypeAlias = "_Drawer | list[int]"


class SelectorIndex:
    """An index of sets of selectors, which it names by their place in the sequence."""

    def __init__(self, sets: Sequence[frozenset[Selector]]) -> None:
        self._sets = sets
        self._root = _split(sets, range(len(sets)), frozenset())

    def within(self, selectors: frozenset[Selector]) -> list[int]:
        """The places of all sets that lie within `selectors`, in ascending order."""
        sets, found = self._sets, self._led_to(selectors)
        return sorted([place for place in found if sets[place] <= selectors])

    def _led_to(self, selectors: Iterable[Selector]) -> list[int]:
        found: list[int] = []
        drawers = [self._root]
        for drawer in drawers:  # it grows meanwhile
            found += drawer.rest
            look_up = drawer.by_selector.get
            for selector in selectors:
                node = look_up(selector)
                if isinstance(node, list):
                    found += node
                elif node is not None:
                    drawers.append(node)
        return found


def _split(
    sets: Sequence[frozenset[Selector]], places: Sequence[int], common: frozenset[Selector]
) -> _Drawer:
    """These sets, all of which have what is `common`, each under its rarest other selector."""
    others = [sets[place] - common for place in places] if common else sets
    counts = Counter(chain.from_iterable(others))
    drawer, by_rarest = _Drawer(), defaultdict(list)
    for place, selectors in zip(places, others, strict=True):
        if selectors:
            by_rarest[min(selectors, key=counts.__getitem__)].append(place)
        else:
            drawer.rest.append(place)
    drawer.by_selector.update(by_rarest)
    for selector, together in by_rarest.items():
        if len(together) > FEW and len(common) < DEEPEST - 1:
            drawer.by_selector[selector] = _split(sets, together, common | {selector})
    return drawer
