"""Facts for references and manual pages: keys of files, commands, selectors."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from agent.attestation.plugins import known_attestors
from agent.cli.main import commands
from agent.service.reload import CHANGEABLE
from attestors.builtin import BUILTIN
from deploy.reference.schemas import SCHEMAS, schema_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from attestors.api import SelectorKind


_TYPES = {
    "boolean": "true or false",
    "object": "mapping",
    "['string', 'integer']": "name or number",
}


# --- keys of files ------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A key of a file: its type and default as written in YAML, and its meaning."""

    name: str
    type: str
    default: str
    meaning: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A mapping in a file; the outermost has no name."""

    name: str
    meaning: str
    keys: tuple[Key, ...]


def configuration() -> Iterator[Section]:
    """The sections of agent.yaml, with the options of each built-in attestor."""
    yield from _sections(schema_of(SCHEMAS["agent"]))
    for name in BUILTIN:
        options = schema_of(known_attestors()[name].Options)
        yield from _sections(options, f"attestors.{name}")


def entries() -> Iterator[Section]:
    """The sections of an entry file."""
    return _sections(schema_of(SCHEMAS["entries"]))


def changes_on_reload(key: str) -> bool:
    """Whether a setting of agent.yaml changes without a restart."""
    return key.partition(".")[0] in CHANGEABLE


def _sections(
    schema: dict[str, Any], name: str = "", defs: dict[str, Any] | None = None
) -> Iterator[Section]:
    defs = schema.get("$defs", {}) if defs is None else defs
    plain, inner = [], []
    required = schema.get("required", ())
    for key, written in schema.get("properties", {}).items():
        value = _resolved(written, defs)
        if (section := _section_in(value, defs)) is not None:
            inner.append((f"{name}.{key}".lstrip("."), section))
        if section is None or "items" in value or "anyOf" in value:
            plain.append(_key(key, value, defs, is_required=key in required))
    meaning = _flat(schema.get("description", ""))
    yield Section(name=name, meaning=meaning, keys=tuple(plain))
    for inner_name, section in inner:
        yield from _sections(section, inner_name, defs)


def _section_in(value: dict[str, Any], defs: dict[str, Any]) -> dict[str, Any] | None:
    """Return the mapping schema of a value, of an optional value or of a list's items."""
    options = [value, *(_resolved(each, defs) for each in value.get("anyOf", ()))]
    for option in [*options, *(_resolved(each.get("items", {}), defs) for each in options)]:
        if "properties" in option:
            return option
    return None


def _resolved(schema: dict[str, Any], defs: dict[str, Any]) -> dict[str, Any]:
    """Merge a schema with the definition it refers to; the schema's own keys take precedence."""
    return {**defs.get(schema.get("$ref", "").rpartition("/")[2], {}), **schema}


def _key(name: str, value: dict[str, Any], defs: dict[str, Any], *, is_required: bool) -> Key:
    return Key(
        name=name,
        type=_type(value, defs),
        default="required" if is_required else _written(value.get("default"), value),
        meaning=_flat(value.get("description", "")),
    )


def _type(value: dict[str, Any], defs: dict[str, Any]) -> str:
    if "enum" in value:
        return ", ".join(map(str, value["enum"]))
    if "anyOf" in value:
        options = [_resolved(each, defs) for each in value["anyOf"]]
        return " or ".join(_type(each, defs) for each in options if each.get("type") != "null")
    if "items" in value:
        return f"list of {_type(_resolved(value['items'], defs), defs)}"
    match value.get("type"):
        case "integer" | "number":
            return f"number{_bounds(value)}"
        case "string":
            return _kind_of_text(value)
        case other:
            return _TYPES[str(other)]


def _kind_of_text(value: dict[str, Any]) -> str:
    if "5m" in value.get("examples", ()):
        return "duration"
    if "[0-7]" in value.get("pattern", ""):
        return "octal text"
    return {"date-time": "date and time", "path": "path"}.get(value.get("format", ""), "text")


def _bounds(value: dict[str, Any]) -> str:
    least = value.get("minimum", value.get("exclusiveMinimum"))
    most = value.get("maximum")
    if least is None:
        return ""
    if most is None:
        return f", {least} or more" if "minimum" in value else f", more than {least}"
    return f", {least:g} to {most:.0f}"


def _written(default: object, value: dict[str, Any]) -> str:
    """Return a default in YAML; an empty string if no default can be written."""
    match default:
        case bool():
            return str(default).lower()
        case int() | float():
            return str(int(default) if default == int(default) else default)
        case str():
            return json.dumps(default) if _kind_of_text(value) == "octal text" else default
        case [*items]:
            return f"[{', '.join(map(str, items))}]" if items else ""
        case _:
            return ""


def _flat(text: str) -> str:
    return " ".join(text.split())


# --- commands -----------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A command, or a group of commands, of the command line."""

    usage: str
    paragraphs: tuple[str, ...]
    example: str
    """Empty for a group."""
    options: tuple[tuple[str, str], ...]
    is_group: bool


def all_commands() -> Iterator[Command]:
    """The program itself, and every command in the order of `vouchd --help`."""
    return _commands(commands, click.Context(commands, info_name="vouchd"))


def _commands(command: click.Command, context: click.Context) -> Iterator[Command]:
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    paragraphs = re.split(r"\n\s*\n", (command.help or "").strip())
    is_group = isinstance(command, click.Group)
    yield Command(
        usage=usage,
        paragraphs=tuple(map(_flat, paragraphs)),
        example=(command.epilog or "").removeprefix("Example: "),
        options=tuple(_options(context)),
        is_group=is_group,
    )
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            if (inner := command.get_command(context, name)) is not None:
                yield from _commands(inner, click.Context(inner, info_name=name, parent=context))


def _options(context: click.Context) -> Iterator[tuple[str, str]]:
    """Return flags and meaning of each option except --help."""
    for parameter in context.command.get_params(context):
        is_shown = isinstance(parameter, click.Option) and "--help" not in parameter.opts
        if is_shown and (record := parameter.get_help_record(context)):
            yield record[0], _flat(record[1])


# --- selectors ----------------------------------------------------------------------------------
def selectors(attestor: str) -> tuple[SelectorKind, ...]:
    """The kinds of selectors that a built-in attestor returns."""
    kinds: tuple[SelectorKind, ...] = known_attestors()[attestor].selectors  # type: ignore[attr-defined]
    return kinds
