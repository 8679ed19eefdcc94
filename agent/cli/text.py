"""An answer as indented text with styles, which a terminal shows and a pipe does not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeGuard

from rich.console import Console
from rich.text import Text

from agent.cli.output import printable, relative

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent.cli.output import Data

_INDENT = "  "
# Print a list of at most this length on one line.
_LINE_CHARS = 90


def print_text(data: Data, now: datetime) -> None:
    """Print an answer to stdout."""
    # Wrapped lines could not be selected or searched with grep.
    Console(soft_wrap=True, highlight=False).print(to_text(data, now))


def to_text(data: Data, now: datetime) -> Text:
    """Return an answer as text."""
    paragraphs = data if _is_list(data) else [data]
    lines: list[Text] = []
    for number, paragraph in enumerate(paragraphs):
        lines += [Text()] if number else []
        lines += _lines(paragraph, now)
    return Text("\n").join(lines)


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
