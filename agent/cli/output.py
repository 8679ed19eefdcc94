"""Print an answer as indented text or as JSON.

A command builds plain data (mappings, sequences, text, numbers, times). JSON has its keys, which
are stable; text has the same keys with blanks for underscores, without empty values.

Text from a process, such as a file name, may hold control characters of a terminal: characters that
are not printable are escaped.
"""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Data: TypeAlias = "bool | int | str | datetime | Mapping[str, Data] | Sequence[Data] | None"

_UNITS = ((86400, "day"), (3600, "hour"), (60, "minute"), (1, "second"))


class Format(StrEnum):
    """A value of `--output`."""

    TEXT = "text"
    JSON = "json"


def show(data: Data, output: Format, now: datetime) -> None:
    """Write an answer to stdout; JSON as one line.

    Args:
        data: the answer; in text, the members of a top-level list are paragraphs.
        output: text or JSON.
        now: text shows the distance of each time from it.
    """
    if output is Format.JSON:
        sys.stdout.write(to_json(data) + "\n")
    else:
        from agent.cli.text import print_text  # noqa: PLC0415 - rich is large, the daemon needs none

        print_text(data, now)
    sys.stdout.flush()


def to_json(data: Data) -> str:
    """Return JSON on one line."""
    return json.dumps(data, default=_time_to_json)


def printable(text: str) -> str:
    """Escape control characters and undecodable bytes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _time_to_json(value: object) -> str:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def relative(instant: datetime, now: datetime) -> str:
    """Return the distance of a time from now in its largest whole unit: "in 59 minutes"."""
    distance = round((instant - now) / timedelta(seconds=1))
    length, unit = next((pair for pair in _UNITS if abs(distance) >= pair[0]), _UNITS[-1])
    count = abs(distance) // length
    words = f"{count} {unit}{'' if count == 1 else 's'}"
    return f"in {words}" if distance >= 0 else f"{words} ago"
