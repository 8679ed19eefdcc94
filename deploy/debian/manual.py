"""Writes the manual pages into the directory given as its argument.

vouchd(1) comes from the commands, vouchd-agent.yaml(5) and vouchd-entries.yaml(5) from the schemas.
"""

from __future__ import annotations

import json
import re
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agent.cli.main import commands

if TYPE_CHECKING:
    from collections.abc import Iterator

CONFIG = Path(__file__).resolve().parents[2] / "config"

ENDING = """\
.SH EXIT STATUS
0: done. 1: refused, or failed while running. 2: wrong usage, or invalid configuration.
.SH ENVIRONMENT
.TP
.B SPIFFE_ENDPOINT_SOCKET
The agent's socket, such as unix:///run/vouchd/agent.sock.
.SH FILES
.TP
.I /etc/vouchd/agent.yaml
The configuration.
.TP
.I /etc/vouchd/entries.d/
The registration entries.
.TP
.I /var/lib/vouchd/
The authority's keys and certificates.
.TP
.I /run/vouchd/
The sockets.
.SH SEE ALSO
.BR vouchd\\-agent.yaml (5),
.BR vouchd\\-entries.yaml (5)
"""


def main(directory: Path) -> None:
    """Write all pages."""
    directory.mkdir(parents=True, exist_ok=True)
    pages = {
        "vouchd.1": commands_page(),
        "vouchd-agent.yaml.5": file_page("agent", "configuration of the vouchd agent"),
        "vouchd-entries.yaml.5": file_page("entries", "registration entries of the vouchd agent"),
    }
    for name, lines in pages.items():
        (directory / name).write_text("\n".join(lines))


# --- commands -----------------------------------------------------------------------------------
def commands_page() -> Iterator[str]:
    """The lines of vouchd(1)."""
    context = click.Context(commands, info_name="vouchd")
    yield from heading("vouchd", 1, commands.get_short_help_str(limit=99).rstrip("."))
    yield from (".SH SYNOPSIS", ".B vouchd", escape("COMMAND [OPTIONS] [ARGUMENTS]"))
    yield from (".SH OPTIONS", *options(context), ".SH COMMANDS")
    yield from subcommands(commands, context)
    yield ENDING


def subcommands(group: click.Group, context: click.Context) -> Iterator[str]:
    """A part for each command that can be run, and a word on each group of them."""
    for name in group.list_commands(context):
        if (command := group.get_command(context, name)) is None:
            continue
        inner = click.Context(command, info_name=name, parent=context)
        usage = " ".join(command.collect_usage_pieces(inner))
        yield f".SS {escape(f'{inner.command_path} {usage}')}"
        yield from prose(command.help or "")
        if isinstance(command, click.Group):
            yield from subcommands(command, inner)
        else:
            yield from options(inner)


def options(context: click.Context) -> Iterator[str]:
    """Each option with its meaning; --help goes without saying."""
    for parameter in context.command.get_params(context):
        is_shown = isinstance(parameter, click.Option) and "--help" not in parameter.opts
        if is_shown and (record := parameter.get_help_record(context)):
            flags, meaning = record
            yield from (".TP", f".B {escape(flags)}", escape(" ".join(meaning.split())))


# --- files --------------------------------------------------------------------------------------
def file_page(name: str, purpose: str) -> Iterator[str]:
    """The lines of the page about one of the files in /etc/vouchd."""
    schema = json.loads((CONFIG / f"schema/{name}.schema.json").read_text())
    example = CONFIG / {"agent": "agent.example.yaml", "entries": "entries.d/example.yaml"}[name]
    yield from heading(f"vouchd-{name}.yaml", 5, purpose)
    yield from (".SH KEYS", *keys(schema, schema["$defs"]), ".SH EXAMPLE", ".EX")
    yield from map(escape, example.read_text().splitlines()[2:])
    yield from (".EE", ".SH SEE ALSO", ".BR vouchd (1)", "")


def keys(section: dict[str, Any], defs: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Each key of a section with its meaning, and those of the sections in it."""
    for name, plain in section["properties"].items():
        key = resolved(plain, defs)
        yield from (".TP", f".B {escape(prefix + name)}", escape(meaning_of(key)))
        # A section, or the items of a list, which may be null instead.
        lists = [key, *key.get("anyOf", [])]
        for inner in (key, *(resolved(each.get("items", {}), defs) for each in lists)):
            if "properties" in inner:
                yield from keys(inner, defs, f"{prefix}{name}.")


def resolved(schema: dict[str, Any], defs: dict[str, Any]) -> dict[str, Any]:
    """What a schema says together with the definition it refers to; its own words come first."""
    return {**defs.get(schema.get("$ref", "").rpartition("/")[2], {}), **schema}


def meaning_of(schema: dict[str, Any]) -> str:
    """A description, the words it may be, and the default."""
    words = [" ".join(schema.get("description", "").split())]
    if choices := schema.get("enum"):
        words.append(f"One of {', '.join(choices)}.")
    if isinstance(default := schema.get("default"), str | bool):
        words.append(f"Default: {json.dumps(default).strip(chr(34))}.")
    return " ".join(words)


# --- roff ---------------------------------------------------------------------------------------
def heading(name: str, section: int, purpose: str) -> Iterator[str]:
    """What every page begins with."""
    yield f'.TH {escape(name).upper()} {section} "" "vouchd {version("vouchd")}"'
    yield from (".nh", ".ad l", ".SH NAME", f"{escape(name)} \\- {escape(purpose)}")


def prose(text: str) -> Iterator[str]:
    """Paragraphs, as a docstring has them."""
    for number, paragraph in enumerate(re.split(r"\n\s*\n", text.strip())):
        yield from ([".PP"] if number else [])
        yield escape(" ".join(paragraph.split()))


def escape(text: str) -> str:
    """Text as roff has it: groff_man(7)."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{text}" if text[:1] in {".", "'"} else text


if __name__ == "__main__":
    main(Path(sys.argv[1]))
