"""Manual pages, from the same facts: groff_man(7)."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from attestors.builtin import BUILTIN
from deploy.reference import facts

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from deploy.reference.facts import Key, Section

_CONFIG = Path(__file__).resolve().parents[2] / "config"
_PAGES = {
    "vouchd": 1,
    "vouchd-agent.yaml": 5,
    "vouchd-entries.yaml": 5,
    "vouchd-selectors": 7,
}
_ENDING = """\
.SH EXIT STATUS
0: done. 1: refused, or failed while running. 2: wrong usage, or invalid configuration. 130: Ctrl-C.
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
.TP
.I /usr/share/doc/vouchd/
Documents: quickstart, how-tos, references."""


def pages() -> Mapping[str, str]:
    """The text of every manual page, by its file name."""
    texts = {
        "vouchd": _commands(),
        "vouchd-agent.yaml": _file(
            "agent", "configuration of the vouchd agent", facts.configuration(), "agent.example"
        ),
        "vouchd-entries.yaml": _file(
            "entries",
            "registration entries of the vouchd agent",
            facts.entries(),
            "entries.d/example",
        ),
        "vouchd-selectors": _selectors(),
    }
    return {
        f"{name}.{_PAGES[name]}": "\n".join([*lines, *_see_also(name), ""])
        for name, lines in texts.items()
    }


def _commands() -> Iterator[str]:
    program, *commands = facts.all_commands()
    yield from _heading("vouchd", program.paragraphs[0].rstrip("."))
    yield from (".SH SYNOPSIS", ".B vouchd", _escape("COMMAND [OPTIONS] [ARGUMENTS]"))
    yield from (".SH OPTIONS", *_options(program.options), ".SH COMMANDS")
    for command in commands:
        yield f".SS {_escape(command.usage)}"
        for number, paragraph in enumerate(command.paragraphs):
            yield from ([".PP"] if number else [])
            yield _escape(paragraph)
        yield from [] if command.is_group else _options(command.options)
        yield from (".PP", "Example:", f".B {_escape(command.example)}") if command.example else ()
    yield _ENDING


def _options(options: Iterable[tuple[str, str]]) -> Iterator[str]:
    for flags, meaning in options:
        yield from (".TP", f".B {_escape(flags)}", _escape(meaning))


def _file(name: str, purpose: str, sections: Iterable[Section], example: str) -> Iterator[str]:
    yield from _heading(f"vouchd-{name}.yaml", purpose)
    yield ".SH KEYS"
    for section in sections:
        if section.name and section.meaning:
            yield from (".TP", f".B {_escape(section.name)}", _escape(section.meaning))
        for key in section.keys:
            full = f"{section.name}.{key.name}".lstrip(".")
            yield from (".TP", f".B {_escape(full)}", _escape(_meaning(key)))
    yield from (".SH EXAMPLE", ".EX")
    yield from map(_escape, (_CONFIG / f"{example}.yaml").read_text().splitlines()[2:])
    yield ".EE"


def _meaning(key: Key) -> str:
    default = {"": "", "required": "Required."}.get(key.default, f"Default: {key.default}.")
    return " ".join(filter(None, [key.meaning, f"Type: {key.type}.", default]))


def _selectors() -> Iterator[str]:
    yield from _heading("vouchd-selectors", "selectors of the vouchd agent, by attestor")
    yield from (".SH DESCRIPTION", "A selector is a fact about a process, type:value.")
    yield "An entry matches a process if all its selectors are true of the process."
    yield _escape("The type is the name of the attestor, which agent.yaml has to switch on.")
    for name in BUILTIN:
        yield f".SH {_escape(name).upper()}"
        for kind in facts.selectors(name):
            text = f"{kind.meaning[:1].upper()}{kind.meaning[1:]}. Rests on {kind.basis}."
            yield from (".TP", f".B {_escape(kind.example)}", _escape(text))


def _heading(name: str, purpose: str) -> Iterator[str]:
    yield f'.TH {_escape(name).upper()} {_PAGES[name]} "" "vouchd {version("vouchd")}"'
    yield from (".nh", ".ad l", ".SH NAME", f"{_escape(name)} \\- {_escape(purpose)}")


def _see_also(page: str) -> Iterator[str]:
    others = [(name, section) for name, section in _PAGES.items() if name != page]
    yield ".SH SEE ALSO"
    for name, section in others:
        comma = "" if (name, section) == others[-1] else ","
        yield f".BR {_escape(name)} ({section}){comma}"


def _escape(text: str) -> str:
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{text}" if text[:1] in {".", "'"} else text
