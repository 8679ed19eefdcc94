"""Attestors by the names that the configuration gives them, imported when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, TypeVar

from agent.errors import StartupError
from attestors.api import AttestorContext, AttestorError
from attestors.builtin import available

if TYPE_CHECKING:
    from collections.abc import Callable

    from pydantic import BaseModel
    from structlog.typing import FilteringBoundLogger

    from attestors.api import Attestor

V = TypeVar("V")


class _Lazy(Mapping[str, V]):
    """A mapping whose names are known, and whose values are made when somebody asks."""

    def __init__(self, names: frozenset[str], make: Callable[[str], V]) -> None:
        self._names = names
        self._make = make

    def __getitem__(self, name: str) -> V:
        if name not in self._names:
            raise KeyError(name)
        return self._make(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def known_attestors() -> Mapping[str, type[Attestor]]:
    """All attestors that the configuration may name.

    Whoever looks one up that is a plug-in which cannot be loaded gets a StartupError.
    """
    points = available()

    def load(name: str) -> type[Attestor]:
        try:
            kind: type[Attestor] = points[name].load()
        except Exception as error:
            raise StartupError(
                f"the attestor {name} cannot be loaded ({type(error).__name__}: {error}); "
                "repair its package, or leave it out of `attestors`"
            ) from error
        return kind

    return _Lazy(frozenset(points), load)


def known_options() -> Mapping[str, type[BaseModel]]:
    """The model of each attestor's options; see `known_attestors`."""
    known = known_attestors()
    return _Lazy(frozenset(known), lambda name: known[name].Options)


def make_attestors(
    configured: Mapping[str, BaseModel], log: FilteringBoundLogger
) -> list[Attestor]:
    """Make the attestors that are on, from their options. The caller closes them.

    Raises:
        StartupError: one of them cannot start.
    """
    known = known_attestors()
    made: list[Attestor] = []
    for name, options in configured.items():
        context = AttestorContext(log=log.bind(attestor=name).warning)
        try:
            made.append(known[name](options, context))
        except AttestorError as error:
            raise StartupError(f"attestor {name} cannot start: {error}") from error
    return made
