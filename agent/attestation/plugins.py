"""Load the attestors that the configuration names, check their interface, and construct them.

A plug-in may fail at each of these steps. The error names the attestor and the way out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from pydantic import BaseModel

from agent.attestation.runner import close_attestors
from agent.errors import StartupError
from agent.telemetry.throttled_log import ThrottledLog
from attestors.api import AttestorContext, AttestorError
from attestors.builtin import available

if TYPE_CHECKING:
    from collections.abc import Callable

    from structlog.typing import FilteringBoundLogger

    from attestors.api import Attestor

_ADVICE = "repair its package, or leave it out of `attestors`"

V = TypeVar("V")


class Loadable(Protocol):
    """The part of an EntryPoint that is used here."""

    def load(self) -> Any:
        """Import the module and return the object that the entry point names."""
        ...


class _Lazy(Mapping[str, V]):
    """A mapping of known names, whose values are made at each access."""

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


def known_attestors(points: Mapping[str, Loadable] | None = None) -> Mapping[str, type[Attestor]]:
    """Return the classes of all installed attestors; an access imports and checks one.

    An access raises StartupError if the plug-in cannot be loaded or lacks a part of the interface.
    """
    found = available() if points is None else points
    return _Lazy(frozenset(found), lambda name: _load(name, found[name]))


def known_options(points: Mapping[str, Loadable] | None = None) -> Mapping[str, type[BaseModel]]:
    """Return the models of all attestors' options; see `known_attestors`."""
    known = known_attestors(points)
    return _Lazy(frozenset(known), lambda name: known[name].Options)


async def make_attestors(
    configured: Mapping[str, BaseModel],
    log: FilteringBoundLogger,
    points: Mapping[str, Loadable] | None = None,
) -> list[Attestor]:
    """Construct the enabled attestors with their options. The caller closes them.

    Raises:
        StartupError: an attestor cannot start. The others are closed.
    """
    known = known_attestors(points)
    classes = {name: known[name] for name in configured}
    made: list[Attestor] = []
    try:
        for name, options in configured.items():
            made.append(_make(classes[name], options, log))
    except BaseException:
        await close_attestors(made, log)
        raise
    return made


def _load(name: str, point: Loadable) -> type[Attestor]:
    try:
        loaded = point.load()
    except (Exception, SystemExit) as error:
        raise StartupError(
            f"the attestor {name} cannot be loaded ({type(error).__name__}: {error}); {_ADVICE}"
        ) from error
    faults = "; ".join(_faults(name, loaded))
    if faults:
        raise StartupError(f"the attestor {name} cannot be used: {faults}; {_ADVICE}")
    kind: type[Attestor] = loaded
    return kind


def _faults(name: str, loaded: Any) -> Iterator[str]:
    """Name each part of the interface (attestors.api.Attestor) that is missing or wrong."""
    if not isinstance(loaded, type):
        yield f"it is {type(loaded).__name__} instead of a class"
        return
    # Its name is the type of its selectors: another one would be another attestor's.
    if getattr(loaded, "name", None) != name:
        yield f"its `name` is {getattr(loaded, 'name', None)!r} instead of {name!r}"
    options = getattr(loaded, "Options", None)
    if not (isinstance(options, type) and issubclass(options, BaseModel)):
        yield "its `Options` is not a pydantic model"
    timeout = getattr(loaded, "timeout", None)
    if not _is_seconds(timeout) or not timeout:
        yield f"its `timeout` is {timeout!r} instead of a positive number of seconds"
    reuse = getattr(loaded, "reuse_seconds", 0.0)
    if not _is_seconds(reuse):
        yield f"its `reuse_seconds` is {reuse!r} instead of a number of seconds"
    for method in ("attest", "close"):
        if not callable(getattr(loaded, method, None)):
            yield f"it has no `{method}`"


def _is_seconds(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and value >= 0


def _make(kind: type[Attestor], options: BaseModel, log: FilteringBoundLogger) -> Attestor:
    name = kind.name
    try:
        return kind(options, AttestorContext(log=_logger(name, log)))
    except AttestorError as error:
        raise StartupError(f"the attestor {name} cannot start: {error}") from error
    except (Exception, SystemExit) as error:
        log.exception("internal error", where="attestor", attestor=name)
        raise StartupError(
            f"the attestor {name} cannot start ({type(error).__name__}: {error}); {_ADVICE}"
        ) from error


def _logger(name: str, log: FilteringBoundLogger) -> Callable[..., None]:
    """Return the function for an attestor's own log lines, which a caller may cause at will."""
    throttled = ThrottledLog(log.bind(attestor=name))

    def warn(event: str, /, **fields: object) -> None:
        throttled.warning(event, name, **fields)

    return warn
