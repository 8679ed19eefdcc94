"""SPIFFE ID templates, filled in from a process's selectors: `/ns/{k8s:ns}/sa/{k8s:sa}`.

`{unix:user}` is replaced by the text after `unix:user:` in the only selector that begins so. Values
are never rewritten: one that is missing, ambiguous, or not a valid path segment gives no identity.
Rewriting could give two different processes the same SPIFFE ID.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cachetools import LRUCache

from agent.spiffe.ids import SpiffeId, TrustDomain
from attestors.api import Selector

if TYPE_CHECKING:
    from collections.abc import Iterable, MutableMapping

# Filled-in SPIFFE IDs that each template keeps.
KNOWN_IDS = 1000

_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")


class TemplateError(ValueError):
    """The selectors of a process give no SPIFFE ID; the message names the placeholder and why."""


@dataclass(frozen=True, slots=True)
class SpiffeIdTemplate:
    """The path of a SPIFFE ID with at least one placeholder `{type:kind}`.

    Raises:
        ValueError: the path is not valid, is reserved, or a placeholder cannot begin a selector.
    """

    trust_domain: TrustDomain
    path: str
    known_ids: int = field(default=KNOWN_IDS, compare=False, repr=False)
    """How many filled-in SPIFFE IDs it keeps."""
    placeholders: tuple[str, ...] = field(init=False, compare=False, repr=False)
    _known: MutableMapping[tuple[str, ...], SpiffeId] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        names = tuple(dict.fromkeys(_PLACEHOLDER.findall(self.path)))
        if not names:
            raise ValueError(
                f"path {self.path!r} has no whole placeholder: write it like /user/{{unix:user}}"
            )
        for name in names:
            try:
                Selector.parse(name)
            except ValueError:
                raise ValueError(
                    f"placeholder {{{name}}} does not name selectors: write it like {{unix:user}}"
                ) from None
        check_not_reserved(SpiffeId(self.trust_domain, _PLACEHOLDER.sub("x", self.path)))
        object.__setattr__(self, "placeholders", names)
        object.__setattr__(self, "_known", LRUCache(self.known_ids))

    @property
    def selector_types(self) -> frozenset[str]:
        """The types of the selectors that fill it in."""
        return frozenset(Selector.parse(name).type for name in self.placeholders)

    def evidence(self, selectors: Iterable[Selector]) -> frozenset[Selector]:
        """Return those of the selectors that fill it in."""
        prefixes = tuple(f"{name}:" for name in self.placeholders)
        return frozenset(each for each in selectors if str(each).startswith(prefixes))

    def fill_in(self, selectors: Iterable[Selector]) -> SpiffeId:
        """Return the SPIFFE ID of a process with these selectors.

        Raises:
            TemplateError: a value is missing, ambiguous or not valid.
        """
        facts = [str(selector) for selector in selectors]
        values = tuple(_value(name, facts) for name in self.placeholders)
        if (known := self._known.get(values)) is not None:
            return known
        made = self._known[values] = self._make(dict(zip(self.placeholders, values, strict=True)))
        return made

    def _make(self, values: dict[str, str]) -> SpiffeId:
        path = _PLACEHOLDER.sub(lambda found: values[found[1]], self.path)
        try:
            spiffe_id = SpiffeId(self.trust_domain, path)
            check_not_reserved(spiffe_id)
        except ValueError as error:
            raise TemplateError(f"{self.path} gives no SPIFFE ID: {error}") from None
        return spiffe_id

    def __str__(self) -> str:
        return self.trust_domain.id + self.path


def has_placeholders(path: str) -> bool:
    """Return whether a path is meant as a template: no SPIFFE ID has braces."""
    return "{" in path or "}" in path


def check_not_reserved(spiffe_id: SpiffeId) -> None:
    """Refuse the path that SPIRE reserves for its servers and agents.

    Raises:
        ValueError: the path is /spire or below it.
    """
    if spiffe_id.path == "/spire" or spiffe_id.path.startswith("/spire/"):
        raise ValueError(
            f"path {spiffe_id.path!r} is reserved: choose one that is not below /spire"
        )


def _value(name: str, facts: list[str]) -> str:
    prefix = f"{name}:"
    values = [fact[len(prefix) :] for fact in facts if fact.startswith(prefix)]
    if not values:
        raise TemplateError(f"{{{name}}} has no value: the process has no {prefix}… selector")
    if len(values) > 1:
        raise TemplateError(
            f"{{{name}}} is ambiguous: the process has {len(values)} such selectors"
        )
    try:
        SpiffeId(TrustDomain("x"), f"/{values[0]}")
    except ValueError:
        is_segment = False
    else:
        is_segment = "/" not in values[0]
    if not is_segment:
        raise TemplateError(f"{{{name}}} is {values[0]!r}, which is not a valid path segment")
    return values[0]
