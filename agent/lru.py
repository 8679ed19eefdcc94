"""A value for each key; the longest unused are forgotten."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

# Keys that are remembered; one that was forgotten begins anew. Whoever can have so many users or
# cgroups that they push each other out is bounded by what all together may have.
KEYS = 4096

K = TypeVar("K", bound="Hashable")
V = TypeVar("V")


class LruDict(Generic[K, V]):
    """A value for each key, made when it is first asked for; the longest unused are forgotten."""

    def __init__(self, make: Callable[[], V], keys: int = KEYS) -> None:
        self._make = make
        self._keys = keys
        self._values: OrderedDict[K, V] = OrderedDict()

    def of(self, key: K) -> V:
        """The value of a key."""
        value = self._values.get(key)
        if value is None:
            value = self._values[key] = self._make()
            if len(self._values) > self._keys:
                self._values.popitem(last=False)
        self._values.move_to_end(key)
        return value
