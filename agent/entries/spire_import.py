"""Convert SPIRE's registration entries to vouchd's.

The importer reads two formats: the JSON of `spire-server entry show -output json`, and
ClusterStaticEntry objects of the SPIRE controller manager in YAML. It leaves out fields without a
counterpart, and reports them. Every converted entry has passed `agent.entries.schema`.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from agent.config.values import format_duration
from agent.config.yaml_document import Source
from agent.entries.schema import parse_entries
from agent.errors import ConfigError, Problem

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from agent.spiffe.ids import TrustDomain

KIND = "ClusterStaticEntry"

# 9999-12-31T23:59:59Z, the last that datetime can represent.
_LAST_SECOND = 253402300799
_GO_UNITS = {"h": 3600, "m": 60, "s": 1}
_GO_DURATION = re.compile(r"([0-9]+h)?([0-9]+m)?([0-9]+s)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """A YAML file of `count` entries, and a sentence for each thing that was left out."""

    text: str
    count: int
    dropped: tuple[str, ...]


def import_entries(
    source: Source, trust_domain: TrustDomain, selector_types: frozenset[str]
) -> Imported:
    """Convert a file of SPIRE's entries.

    Args:
        source: the file.
        trust_domain: the agent's own; entries of other trust domains are left out.
        selector_types: the types that enabled attestors produce; other types are reported.

    Raises:
        ConfigError: the file has neither format, or a value in it cannot be read.
    """
    importer = _Importer(trust_domain, selector_types)
    for foreign in _read(source, importer.dropped):
        importer.add(foreign)
    return importer.result(source.name)


# --- the two formats -----------------------------------------------------------------------------


def _go_seconds(value: object) -> object:
    """Return the seconds of a Go duration such as 1h30m0s; leave other values to the model."""
    found = _GO_DURATION.fullmatch(value) if isinstance(value, str) else None
    if not found or not any(found.groups()):
        return value
    return sum(int(part[:-1]) * _GO_UNITS[part[-1]] for part in found.groups() if part)


_Seconds = Annotated[int, BeforeValidator(_go_seconds), Field(ge=0)]


class _Foreign(BaseModel):
    """An entry of SPIRE: the fields that both formats have."""

    model_config = ConfigDict(frozen=True, populate_by_name=True)

    id: str = ""
    spiffe_id: str = Field(alias="spiffeID")
    parent_id: str = Field("", alias="parentID")
    selectors: tuple[str, ...]
    x509_svid_ttl: _Seconds = Field(0, alias="x509SVIDTTL")
    jwt_svid_ttl: _Seconds = Field(0, alias="jwtSVIDTTL")
    dns_names: tuple[str, ...] = Field((), alias="dnsNames")
    federates_with: tuple[str, ...] = Field((), alias="federatesWith")
    hint: str = ""
    expires_at: Annotated[int, Field(ge=0, le=_LAST_SECOND)] = 0
    admin: bool = False
    downstream: bool = False
    store_svid: bool = Field(False, alias="storeSVID")  # noqa: FBT003 - pydantic's way


def _read(source: Source, dropped: list[str]) -> Iterator[_Foreign]:
    if source.content.lstrip().startswith(b"{"):
        yield from _read_json(source)
    else:
        yield from _read_yaml(source, dropped)


def _read_json(source: Source) -> Iterator[_Foreign]:
    try:
        document = json.loads(source.content)
    except UnicodeDecodeError as error:
        raise _problem(source, f"it is not UTF-8 text: {error.reason}") from None
    except json.JSONDecodeError as error:
        raise ConfigError([Problem(source.name, error.lineno, error.colno, error.msg)]) from None
    entries = document.get("entries")
    if not isinstance(entries, list):
        raise _problem(source, "it has no list of entries: is it spire-server's output?")
    for number, entry in enumerate(entries):
        try:
            plain = {
                **entry,
                "spiffe_id": _id(entry["spiffe_id"]),
                "parent_id": _id(entry.get("parent_id") or {}),
                "selectors": [f"{each['type']}:{each['value']}" for each in entry["selectors"]],
            }
        except (KeyError, TypeError, AttributeError) as error:
            raise _problem(source, f"entries[{number}] is not an entry: {error!r}") from None
        yield _validated(source, f"entries[{number}]", plain)


def _id(parts: dict[str, str]) -> str:
    return f"spiffe://{parts['trust_domain']}{parts['path']}" if parts else ""


def _read_yaml(source: Source, dropped: list[str]) -> Iterator[_Foreign]:
    try:
        documents = [each for each in yaml.safe_load_all(source.content) if each is not None]
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        raise ConfigError([Problem(source.name, line, column, str(error.problem))]) from None
    except yaml.YAMLError as error:
        raise _problem(source, f"it is not YAML: {error}") from None
    if not documents:
        raise _problem(source, "it is empty")
    for number, document in enumerate(_items(documents)):
        place = f"object {number + 1}"
        if not isinstance(document, dict) or "kind" not in document:
            raise _problem(source, f"{place} is neither spire-server's JSON nor a {KIND}")
        if document["kind"] != KIND:
            dropped.append(f"{place} is a {document['kind']}, not a {KIND}: left out")
            continue
        metadata, spec = document.get("metadata"), document.get("spec")
        if not isinstance(metadata, dict) or not isinstance(spec, dict):
            raise _problem(source, f"{place} has no metadata or no spec")
        yield _validated(source, place, {"id": metadata.get("name", ""), **spec})


def _items(documents: Iterable[Any]) -> Iterator[Any]:
    for document in documents:
        if isinstance(document, dict) and isinstance(document.get("items"), list):
            yield from document["items"]
        else:
            yield document


def _validated(source: Source, place: str, data: dict[str, Any]) -> _Foreign:
    try:
        return _Foreign.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, (place, *first["loc"])))
        raise _problem(source, f"{where}: {first['msg']}") from None


def _problem(source: Source, reason: str) -> ConfigError:
    return ConfigError([Problem(source.name, 1, 1, reason)])


# --- conversion ----------------------------------------------------------------------------------


@dataclass(slots=True)
class _Importer:
    """Collects converted entries, and a sentence for each thing that is left out."""

    trust_domain: TrustDomain
    selector_types: frozenset[str]
    dropped: list[str] = field(default_factory=list)
    entries: list[dict[str, Any]] = field(default_factory=list)
    parents: int = 0
    _alike: set[tuple[str, frozenset[str]]] = field(default_factory=set)
    _ids: dict[str, int] = field(default_factory=dict)
    """Each ID in use, with the highest number appended so far."""

    def add(self, foreign: _Foreign) -> None:
        name = foreign.id or foreign.spiffe_id
        if reason := self._why_not(foreign):
            self.dropped.append(f"{name} is left out: {reason}")
            return
        entry = self._convert(foreign)
        alike = entry["spiffe_id"], frozenset(entry["selectors"])
        if alike in self._alike:
            self.dropped.append(
                f"{name} is left out: another entry has the same SPIFFE ID and selectors"
            )
            return
        if reason := self._refusal(entry):
            self.dropped.append(f"{name} is left out: {reason}")
            return
        if foreign.admin:
            self.dropped.append(f"{name}: 'admin' is left out: there is no server to administer")
        self.parents += bool(foreign.parent_id)
        self._alike.add(alike)
        if "id" in entry:
            self._ids.setdefault(entry["id"], 0)
        self.entries.append(entry)

    def result(self, source: str) -> Imported:
        if self.parents:
            count = "1 entry" if self.parents == 1 else f"{self.parents} entries"
            self.dropped.append(
                f"the parent of {count} is left out: vouchd has no nodes, so an entry holds on"
                " every host that has this file"
            )
        types = {each.partition(":")[0] for entry in self.entries for each in entry["selectors"]}
        self.dropped += [
            f"no enabled attestor produces {kind!r} selectors: entries with them match nothing"
            for kind in sorted(types - self.selector_types)
        ]
        body = yaml.safe_dump({"entries": self.entries}, sort_keys=False, allow_unicode=True)
        return Imported(
            text=f"# Imported from {source.encode('unicode_escape').decode()}\n{body}",
            count=len(self.entries),
            dropped=tuple(self.dropped),
        )

    def _why_not(self, foreign: _Foreign) -> str:
        if not foreign.spiffe_id.startswith(f"{self.trust_domain.id}/"):
            return f"{foreign.spiffe_id} is not in trust domain {self.trust_domain}"
        if foreign.parent_id.endswith("/spire/server"):
            return "it describes a node, and vouchd has no nodes"
        if foreign.downstream:
            return "it is for a nested server, and vouchd has none"
        if foreign.store_svid:
            return "its SVID is meant for a secret store, and vouchd supports none"
        return ""

    def _convert(self, foreign: _Foreign) -> dict[str, Any]:
        entry: dict[str, Any] = {
            "id": self._free_id(foreign.id),
            "spiffe_id": foreign.spiffe_id.removeprefix(self.trust_domain.id),
            "selectors": list(foreign.selectors),
            "x509_svid_ttl": _duration(foreign.x509_svid_ttl),
            "jwt_svid_ttl": _duration(foreign.jwt_svid_ttl),
            "dns_names": list(foreign.dns_names),
            "hint": foreign.hint,
            "federates_with": list(foreign.federates_with),
            "expires_at": _instant(foreign.expires_at),
        }
        kept = ("spiffe_id", "selectors")
        return {key: value for key, value in entry.items() if value or key in kept}

    def _refusal(self, entry: dict[str, Any]) -> str:
        """Return why vouchd's own parser refuses the entry; empty if it accepts it."""
        text = yaml.safe_dump({"entries": [entry]}, sort_keys=False, allow_unicode=True)
        source = Source(name="", content=text.encode())
        try:
            parse_entries([source], self.trust_domain, self.selector_types)
        except ConfigError as error:
            return "; ".join(problem.message for problem in error.problems)
        return ""

    def _free_id(self, wanted: str) -> str:
        """Return the ID, with a number appended if it is in use: `web`, `web-2`, `web-3`."""
        if wanted not in self._ids:
            return wanted
        number = max(self._ids[wanted] + 1, 2)
        while (free := f"{wanted}-{number}") in self._ids:
            number += 1
        self._ids[wanted] = number - 1
        return free


def _duration(seconds: int) -> str:
    return format_duration(timedelta(seconds=seconds)) if seconds else ""


def _instant(seconds: int) -> str:
    if not seconds:
        return ""
    return datetime.fromtimestamp(seconds, tz=UTC).isoformat().replace("+00:00", "Z")
