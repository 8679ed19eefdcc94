"""The metrics and labels in a PromQL expression. promtool checks the syntax in another test."""

from __future__ import annotations

import re
from dataclasses import dataclass

_WORD = re.compile(r'"(?:[^"\\]|\\.)*"|[A-Za-z_:][A-Za-z0-9_:]*|[0-9.]+[a-z]*|=~|!~|!=|\S')
_NAME = re.compile(r"[A-Za-z_:][A-Za-z0-9_:]*")
_GROUPINGS = {"by", "without", "on", "ignoring", "group_left", "group_right"}
_KEYWORDS = {"and", "or", "unless", "offset", "bool", *_GROUPINGS}


@dataclass(frozen=True, slots=True)
class Selected:
    """A metric with its matchers: (label, operator, value)."""

    metric: str
    matchers: tuple[tuple[str, str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Parts:
    """The metrics and grouping labels of an expression."""

    selected: tuple[Selected, ...]
    grouped_by: frozenset[str]


def parse(expression: str) -> Parts:
    """Parse an expression that may contain Grafana's `$__rate_interval`."""
    words = _WORD.findall(expression.replace("$__rate_interval", "5m"))
    selected: list[Selected] = []
    groups: set[str] = set()
    position = 0
    while position < len(words):
        word, following = words[position], "".join(words[position + 1 : position + 2])
        if word in _GROUPINGS and following == "(":
            end = words.index(")", position)
            groups.update(filter(_NAME.fullmatch, words[position + 2 : end]))
            position = end
        elif word == "[":
            position = words.index("]", position)
        elif _NAME.fullmatch(word) and following == "{":
            end = words.index("}", position)
            selected.append(Selected(word, _matchers(words[position + 2 : end])))
            position = end
        elif _is_metric(word, following):
            selected.append(Selected(word))
        position += 1
    return Parts(tuple(selected), frozenset(groups))


def _is_metric(word: str, following: str) -> bool:
    is_function = following in {"(", "by", "without"}
    return bool(_NAME.fullmatch(word)) and not is_function and word not in _KEYWORDS


def _matchers(words: list[str]) -> tuple[tuple[str, str, str], ...]:
    kept = [word for word in words if word != ","]
    return tuple(
        (label, operator, value.strip('"'))
        for label, operator, value in zip(kept[::3], kept[1::3], kept[2::3], strict=True)
    )
