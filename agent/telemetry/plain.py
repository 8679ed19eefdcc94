"""Convert values to plain data for logs, JSON and protobuf messages; bound foreign text.

A dataclass becomes a mapping of its fields, so that one definition serves every output.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from typing import Any, Final

EXCERPT_CHARS: Final = 256
"""The most that a text of callers adds to a line of the log, of the audit trail or of a status."""


def to_plain(value: object) -> Any:  # noqa: PLR0911 - a table
    """Convert to mappings, lists, text, numbers, booleans and None.

    Sets become sorted lists. Times become RFC 3339 text in UTC. A value of any other type becomes
    its `str`. Undecodable bytes, which names of processes may hold, are escaped.
    """
    match value:
        case None | bool() | int() | float():
            return value
        case datetime():
            return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
        case Mapping():
            return {_text(key): to_plain(each) for key, each in value.items()}
        case AbstractSet():
            return sorted(map(_text, value))
        case tuple() | list():
            return [to_plain(each) for each in value]
        case _ if is_dataclass(value):
            return {each.name: to_plain(getattr(value, each.name)) for each in fields(value)}
        case _:
            return _text(value)


def _text(value: object) -> str:
    return str(value).encode(errors="backslashreplace").decode()


def excerpt(text: str) -> str:
    """Return the beginning of a text that may hold a caller's: at most EXCERPT_CHARS, printable.

    Characters that are not printable, among them terminal escapes and direction marks, are escaped.
    """
    shown = text[: EXCERPT_CHARS + 1]
    if not shown.isprintable():
        escaped = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)
        shown = "".join(escaped)
    return shown if len(shown) <= EXCERPT_CHARS else f"{shown[: EXCERPT_CHARS - 1]}…"
