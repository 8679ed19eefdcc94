"""Parse YAML into plain data, with the line and column of every node and every mistake.

`read` turns bytes into a `Document`: mappings, lists, text, numbers, truth values and null, with
the place in the file where each of them begins. `Document.validate` validates the data with a
pydantic model and reports mistakes in plain words at their places.

The dialect is a strict subset of YAML 1.1: one document in UTF-8, keys are text and unique, no
tags, no merge keys, and timestamps stay text. Aliases work, but a file cannot stand for more nodes
than it has bytes, and a node cannot contain itself.
"""

from __future__ import annotations

import codecs
import difflib
import re
from bisect import bisect_right
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from agent.config.values import kind_of, why_not_text
from agent.errors import ConfigError, Problem, Severity

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from pydantic_core import ErrorDetails

# Deeper than any real configuration, far shallower than Python's stack.
MAX_DEPTH = 32

Loc: TypeAlias = tuple[str | int, ...]
"""The path to a node: keys and list indices, in the form that pydantic reports."""
_Places: TypeAlias = dict[int, tuple[int, ...]]
_Model = TypeVar("_Model", bound=BaseModel)

_AnyLoader: TypeAlias = "type[yaml.CSafeLoader | yaml.SafeLoader]"
# PyYAML may be built without libyaml.
LOADER: _AnyLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# The characters outside those that YAML 1.2 section 5.1 allows.
_FORBIDDEN = re.compile(r"[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A file's content, and its name for messages."""

    name: str
    content: bytes


def nearest(word: str, known: Iterable[str]) -> str:
    """Return advice to append to "unknown ...": the most similar known word, or all of them."""
    words = sorted(known)
    if close := difflib.get_close_matches(word, words, n=1):
        return f"did you mean {close[0]!r}?"
    return f"known: {', '.join(words) or 'none'}"


# --- documents ---------------------------------------------------------------------------------
@dataclass(frozen=True, kw_only=True)
class Document:
    """The data of a file, and the place of each node.

    `problems` are mistakes that left the rest of the file readable; the caller reports them
    together with its own.
    """

    name: str
    text: str = field(repr=False)
    data: Any
    problems: tuple[Problem, ...]
    # By id() of each list and mapping in `data`: the offsets of the items, or of keys and values in
    # turn. Flat: the garbage collector would traverse a tree of 100,000 entries for seconds.
    _places: _Places = field(repr=False)
    _start: int = 0

    def problem(
        self, loc: Loc, message: str, *, severity: Severity = Severity.ERROR, at_key: bool = False
    ) -> Problem:
        """Return a problem at the value at `loc`, or at the key of that value.

        A part of `loc` that the file does not have is ignored: the place is then the node around.
        """
        return self._locator.problem(self._offset(loc, at_key=at_key), message, severity)

    def lines(self, loc: Loc) -> list[int]:
        """Return the lines on which the items of the list at `loc` begin."""
        node = self.data
        for part in loc:
            node = node[part]
        return [self._locator.position(offset)[0] for offset in self._places[id(node)]]

    def validate(
        self, model: type[_Model], data: object, *, loc: Loc = (), context: object = None
    ) -> _Model:
        """Validate `data`, which stands at `loc`, with `model`.

        Raises:
            ConfigError: with every mistake.
        """
        try:
            return model.model_validate(data, context=context)
        except ValidationError as error:
            details = error.errors(include_url=False)
            raise ConfigError([self._explain(model, loc, each) for each in details]) from None

    @cached_property
    def _locator(self) -> _Locator:
        return _Locator(self.name, self.text)

    def _offset(self, loc: Loc, *, at_key: bool = False) -> int:
        node, key_at, value_at = self.data, self._start, self._start
        for part in loc:
            places = self._places.get(id(node), ())
            if isinstance(node, dict) and part in node:
                index = 2 * list(node).index(part)
                key_at, value_at = places[index : index + 2]
            elif isinstance(node, list) and part in range(len(node)):
                key_at = value_at = places[int(part)]
            else:
                continue
            node = node[part]
        return key_at if at_key else value_at

    def _explain(self, model: type[BaseModel], base: Loc, error: ErrorDetails) -> Problem:
        loc = base + error["loc"]
        name = next((part for part in reversed(loc) if isinstance(part, str)), "the file")
        kind, value = error["type"], error["input"]
        if kind == "extra_forbidden":
            known = _known_keys(model, error["loc"][:-1])
            advice = f"; {nearest(name, known)}" if known else ""
            return self.problem(loc, f"unknown key {name!r}{advice}", at_key=True)
        if kind in {"value_error", "assertion_error"}:
            return self.problem(loc, f"{name}: {error['ctx']['error']}")
        return self.problem(loc, f"{name} {_plain_words(kind, error['msg'], value)}")


_EXPECTED = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "list": "a list",
    "tuple": "a list",
    "set": "a list",
    "dict": "a mapping of 'key: value' lines",
    "mapping": "a mapping of 'key: value' lines",
    "model": "a mapping of 'key: value' lines",
}


def _plain_words(kind: str, message: str, value: object) -> str:
    """Return pydantic's message in words that need no knowledge of pydantic."""
    if kind == "missing":
        return "is missing"
    if kind == "string_type" or value is None:
        return why_not_text(value)
    wanted = _EXPECTED.get(kind.removesuffix("_type").removesuffix("_parsing"))
    if wanted == "a list" and isinstance(value, str):
        return f"must be a list: write [{value}]"
    if wanted:
        return f"must be {wanted}, not {kind_of(value)}"
    return message.replace("Input should be", "must be").replace("Value error, ", "")


def _known_keys(model: type[BaseModel], loc: Loc) -> list[str]:
    """Return the keys of the model at `loc`, found through annotations; [] if there is none."""
    for part in loc:
        if part in model.model_fields:
            inner = next(_models_in(model.model_fields[str(part)].annotation), None)
            if inner is None:
                return []
            model = inner
    return list(model.model_fields)


def _models_in(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)


class _Locator:
    """Converts offsets to lines and columns, both from 1. Only a line feed ends a line."""

    def __init__(self, name: str, text: str) -> None:
        self._name = name
        self._starts = [0, *(found.end() for found in re.finditer("\n", text))]

    def position(self, offset: int) -> tuple[int, int]:
        line = bisect_right(self._starts, offset)
        return line, offset - self._starts[line - 1] + 1

    def problem(self, offset: int, message: str, severity: Severity = Severity.ERROR) -> Problem:
        return Problem(self._name, *self.position(offset), message, severity)


# --- from bytes to documents -------------------------------------------------------------------
def read(source: Source, loader: _AnyLoader = LOADER) -> Document:
    """Parse one file. The data of an empty one is None.

    Raises:
        ConfigError: the file is not UTF-8, or not YAML of this dialect.
    """
    text = _decode(source)
    composer = _Composer(source.name, text, loader)
    try:
        data = composer.document()
    except yaml.MarkedYAMLError as error:
        composer.refuse(*_syntax_error(error))
    return Document(
        name=source.name,
        text=text,
        data=data,
        problems=tuple(composer.problems),
        _places=composer.places,
        _start=composer.start,
    )


def _decode(source: Source) -> str:
    # Some editors write a byte order mark, which has no meaning in UTF-8.
    content = source.content.removeprefix(codecs.BOM_UTF8)
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        before = content[: error.start].decode()
        _refuse(source.name, before, len(before), "this byte is not UTF-8 text")
    if found := _FORBIDDEN.search(text):
        message = f"control character {found[0]!r} is not allowed here"
        _refuse(source.name, text, found.start(), message)
    return text


def _refuse(name: str, text: str, offset: int, message: str) -> NoReturn:
    raise ConfigError([_Locator(name, text).problem(offset, message)])


# On the left libyaml's message. For the first table, the place is where the construct began.
_SYNTAX = {
    "found unexpected end of stream": "the text in quotes that begins here is never closed",
    "did not find expected ',' or ']'": "the list that begins here is not closed with ']'",
    "did not find expected ',' or '}'": "the mapping that begins here is not closed with '}'",
    "could not find expected ':'": "there is no ': ' after the key that begins here",
}
_SYNTAX_AT_PROBLEM = {
    "mapping values are not allowed in this context": (
        "a ': ' is not expected here: check the indentation, or put the text in quotes"
    ),
    "did not find expected key": "expected 'key: value' here: check the indentation",
    "did not find expected node content": "a value is missing here",
    "did not find expected '-' indicator": "expected '- ' here: check the indentation",
    "block sequence entries are not allowed in this context": (
        "a list item cannot begin here: begin it on a line of its own"
    ),
    "found character that cannot start any token": (
        "no value can begin with this character: indent with spaces, not tabs, and put text that"
        " begins with @, ` or % in quotes"
    ),
    "found a tab character that violates indentation": "indent with spaces, not tabs",
    "found undefined alias": "nothing above carries this anchor",
}


def _syntax_error(error: yaml.MarkedYAMLError) -> tuple[int, str]:
    problem = str(error.problem)
    if problem in _SYNTAX and error.context_mark:
        return error.context_mark.index, _SYNTAX[problem]
    mark = error.problem_mark or error.context_mark
    words = _SYNTAX_AT_PROBLEM.get(problem, f"this is not valid YAML: {problem}")
    return mark.index if mark else 0, words


class _Composer:
    """Builds data in one pass over the parser's events: twice as fast as PyYAML's node tree."""

    def __init__(self, name: str, text: str, loader: _AnyLoader) -> None:
        self.problems: list[Problem] = []
        self.places: _Places = {}
        self.start = 0
        self._name = name
        self._text = text
        self._loader: Any = loader(text)
        # The data and the number of nodes of each anchor; None while its node is still open.
        self._anchors: dict[str, tuple[Any, int] | None] = {}
        self._nodes = 0
        self._depth = 0

    def document(self) -> Any:
        self._loader.get_event()
        if type(self._loader.get_event()) is yaml.StreamEndEvent:
            return None
        first = self._loader.get_event()
        self.start = first.start_mark.index
        root = self._node(first)
        self._loader.get_event()
        following = self._loader.get_event()
        if type(following) is not yaml.StreamEndEvent:
            self.refuse(following.start_mark.index, "a second document begins: one file holds one")
        return root

    def refuse(self, offset: int, message: str) -> NoReturn:
        _refuse(self._name, self._text, offset, message)

    def _node(self, event: Any) -> Any:
        if (kind := type(event)) is yaml.AliasEvent:
            return self._alias(event)
        if event.tag is not None:
            self.refuse(event.start_mark.index, "tags such as !!str are not supported: use quotes")
        before = self._nodes
        self._nodes += 1
        if event.anchor is None:
            return self._scalar(event) if kind is yaml.ScalarEvent else self._content(event)
        self._anchors[event.anchor] = None
        data = self._content(event)
        self._anchors[event.anchor] = data, self._nodes - before
        return data

    def _alias(self, event: Any) -> Any:
        offset = event.start_mark.index
        if event.anchor not in self._anchors:
            self.refuse(offset, f"no '&{event.anchor}' stands above this alias")
        anchored = self._anchors[event.anchor]
        if anchored is None:
            self.refuse(offset, f"the node '&{event.anchor}' contains itself here")
        data, nodes = anchored
        self._nodes += nodes
        if self._nodes > len(self._text):
            self.refuse(
                offset,
                "the aliases stand for more nodes than the file may have: write them out",
            )
        return data

    def _content(self, event: Any) -> Any:
        if type(event) is yaml.ScalarEvent:
            return self._scalar(event)
        self._depth += 1
        if self._depth > MAX_DEPTH:
            self.refuse(event.start_mark.index, f"nested deeper than {MAX_DEPTH} levels")
        is_mapping = type(event) is yaml.MappingStartEvent
        data = self._mapping() if is_mapping else self._sequence()
        self._depth -= 1
        return data

    def _scalar(self, event: Any) -> Any:
        # Only an unquoted value can be another type than text, and mostly its first character
        # already excludes that.
        value, is_plain = event.value, event.implicit[0]
        if not is_plain or value[:1] not in self._loader.yaml_implicit_resolvers:
            return value
        tag = self._loader.resolve(yaml.ScalarNode, value, (True, False))
        if (construct := _CONSTRUCTORS.get(tag)) is None:
            return value
        try:
            return construct(self._loader, yaml.ScalarNode(tag, value))
        except ValueError:
            self.refuse(event.start_mark.index, "this number cannot be read: put it in quotes")

    def _sequence(self) -> list[Any]:
        data: list[Any] = []
        offsets: list[int] = []
        while type(event := self._loader.get_event()) is not yaml.SequenceEndEvent:
            offsets.append(event.start_mark.index)
            data.append(self._node(event))
        self.places[id(data)] = tuple(offsets)
        return data

    def _mapping(self) -> dict[str, Any]:
        data: dict[str, Any] = {}
        offsets: list[int] = []
        while type(event := self._loader.get_event()) is not yaml.MappingEndEvent:
            key, key_at = self._key(event), event.start_mark.index
            event = self._loader.get_event()
            value = self._node(event)
            if key in data:
                self._duplicate(key, key_at, offsets[2 * list(data).index(key)])
            else:
                data[key] = value
                offsets += key_at, event.start_mark.index
        self.places[id(data)] = tuple(offsets)
        return data

    def _key(self, event: Any) -> str:
        offset = event.start_mark.index
        if type(event) is not yaml.ScalarEvent or event.anchor or event.tag:
            self.refuse(offset, "a key must be plain text")
        self._nodes += 1
        key: str = event.value
        if key == "<<":
            self.refuse(offset, "merge keys ('<<') are not supported: write the keys out")
        return key

    def _duplicate(self, key: str, offset: int, first: int) -> None:
        locator = _Locator(self._name, self._text)
        line, _ = locator.position(first)
        message = f"key {key!r} is already given on line {line}: remove one of the two"
        self.problems.append(locator.problem(offset, message))


_CONSTRUCTORS: Mapping[str | None, Any] = {
    f"tag:yaml.org,2002:{name}": yaml.SafeLoader.yaml_constructors[f"tag:yaml.org,2002:{name}"]
    for name in ("null", "bool", "int", "float")
}
