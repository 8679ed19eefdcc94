"""Values that all configuration files share: text and durations.

YAML reads some text as another type (`yes`, `12`); the error message says how to write it as text.
"""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated

from pydantic import BeforeValidator, WithJsonSchema

from agent.spiffe.lifetimes import MIN_LIFETIME

# Ten years: longer than any certificate should be valid, and far from overflowing a date.
MAX_DURATION = timedelta(days=3650)


def as_text(value: object) -> str:
    """Return the value if it is text and not empty.

    Raises:
        ValueError: it is not; the message says how to write it.
    """
    if isinstance(value, str) and value:
        return value
    raise ValueError(why_not_text(value))


def why_not_text(value: object) -> str:
    """Return what is wrong with a value that should be text, and how to write it."""
    match value:
        case None:
            return "has no value: give it one, or remove the line"
        case "":
            return "is empty"
        case bool():
            return (
                "must be text, but YAML reads an unquoted yes, no, on, off, true or false as a"
                " truth value: put it in quotes"
            )
        case int() | float():
            return f'must be text, not a number: put it in quotes, "{value}"'
        case _:
            return f"must be text, not {kind_of(value)}"


_UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_DURATION = re.compile(r"([0-9]{1,12})([smhd])")


def parse_duration(value: object) -> timedelta:
    """Parse `90s`, `5m`, `24h` or `7d`. A timedelta, as a default is, is returned unchanged.

    Raises:
        ValueError: it is not a duration, not positive, or longer than ten years.
    """
    if isinstance(value, timedelta):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        raise ValueError(f"{value} has no unit: write 90s, 5m, 24h or 7d")  # noqa: TRY004 - pydantic
    text = as_text(value)
    if not (found := _DURATION.fullmatch(text)):
        raise ValueError(f"{text!r} is not a duration: write 90s, 5m, 24h or 7d")
    duration = int(found[1]) * _UNITS[found[2]]
    if not duration:
        raise ValueError(f"{text!r} is zero: a duration must be positive")
    if duration > MAX_DURATION.total_seconds():
        raise ValueError(f"{text!r} is longer than {format_duration(MAX_DURATION)}")
    return timedelta(seconds=duration)


def format_duration(duration: timedelta) -> str:
    """Return the shortest text that `parse_duration` reads back, cut to whole seconds."""
    seconds = int(duration.total_seconds())
    unit, length = next(pair for pair in _UNITS.items() if seconds % pair[1] == 0)
    return f"{seconds // length}{unit}"


Text = Annotated[str, BeforeValidator(as_text), WithJsonSchema({"type": "string"})]
DURATION_SCHEMA = WithJsonSchema(
    {"type": "string", "pattern": "^[0-9]+[smhd]$", "examples": ["90s", "5m", "24h", "7d"]}
)


def long_enough(ttl: timedelta) -> timedelta:
    """Return the TTL if an SVID of that lifetime can be renewed in time.

    Raises:
        ValueError: it is shorter than MIN_LIFETIME.
    """
    if ttl < MIN_LIFETIME:
        raise ValueError(
            f"{format_duration(ttl)} is too short to renew an SVID in: "
            f"give {format_duration(MIN_LIFETIME)} or more"
        )
    return ttl


Duration = Annotated[timedelta, BeforeValidator(parse_duration), DURATION_SCHEMA]


def kind_of(value: object) -> str:
    """Return the type that YAML gave the value, in plain words."""
    match value:
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case list():
            return "a list"
        case dict():
            return "a mapping"
        case _:
            return "text"
