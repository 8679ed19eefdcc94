"""Print an answer as indented text or as JSON.

A command builds plain data (mappings, sequences, text, numbers, times). JSON has its keys, which
are stable; text has the same keys with blanks for underscores, without empty values.

Text from a process, such as a file name, may hold control characters of a terminal: characters that
are not printable are escaped.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, TypeAlias, TypeGuard

from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterator

Data: TypeAlias = "bool | int | str | datetime | Mapping[str, Data] | Sequence[Data] | None"

_INDENT = "  "
# Print a list of at most this length on one line.
_LINE_CHARS = 90
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
        # Wrapped lines could not be selected or searched with grep.
        Console(soft_wrap=True, highlight=False).print(to_text(data, now))
    sys.stdout.flush()


def to_json(data: Data) -> str:
    """Return JSON on one line."""
    return json.dumps(data, default=_time_to_json)


def to_text(data: Data, now: datetime) -> Text:
    """Return text with styles, which a terminal shows and a pipe does not."""
    paragraphs = data if _is_list(data) else [data]
    lines: list[Text] = []
    for number, paragraph in enumerate(paragraphs):
        lines += [Text()] if number else []
        lines += _lines(paragraph, now)
    return Text("\n").join(lines)


def printable(text: str) -> str:
    """Escape control characters and undecodable bytes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _time_to_json(value: object) -> str:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def _lines(value: Data, now: datetime) -> Iterator[Text]:
    if isinstance(value, Mapping):
        shown = {key: each for key, each in value.items() if each not in (None, "", [], (), {})}
        width = max(map(len, shown), default=0)
        for key, each in shown.items():
            yield from _member(key.replace("_", " "), each, width, now)
    elif _is_list(value):
        for item in value:
            first, *rest = [*_lines(item, now)] or [Text()]
            yield Text("- ", style="dim") + first
            yield from (Text(_INDENT) + line for line in rest)
    else:
        yield Text(_scalar(value, now))


def _member(label: str, value: Data, width: int, now: datetime) -> Iterator[Text]:
    if _is_block(value):
        yield Text(label, style="dim")
        yield from (Text(_INDENT) + line for line in _lines(value, now))
        return
    values = [_scalar(each, now) for each in (value if _is_list(value) else [value])]
    if sum(map(len, values)) <= _LINE_CHARS:
        values = [", ".join(values)]
    for number, each in enumerate(values):
        head = "" if number else label
        style = "bold" if each.startswith("spiffe://") else ""
        yield Text(f"{head:{width}}{_INDENT}", style="dim") + Text(each, style=style)


def _is_list(value: Data) -> TypeGuard[Sequence[Data]]:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _is_block(value: Data) -> bool:
    """Return whether a value is printed below its label."""
    return isinstance(value, Mapping) or (
        _is_list(value) and any(isinstance(each, Mapping) for each in value)
    )


def _scalar(value: object, now: datetime) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case datetime():
            return f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC ({relative(value, now)})"
        case _:
            return printable(str(value))


def relative(instant: datetime, now: datetime) -> str:
    """Return the distance of a time from now in its largest whole unit: "in 59 minutes"."""
    distance = round((instant - now) / timedelta(seconds=1))
    length, unit = next((pair for pair in _UNITS if abs(distance) >= pair[0]), _UNITS[-1])
    count = abs(distance) // length
    words = f"{count} {unit}{'' if count == 1 else 's'}"
    return f"in {words}" if distance >= 0 else f"{words} ago"
