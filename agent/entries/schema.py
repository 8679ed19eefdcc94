"""Parse registration entries: YAML in, an `EntrySet` out, or every mistake with its place.

One mistake refuses all files; no part of a refused set is ever in force. Order is kept: sources as
given, entries as written.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from json.encoder import encode_basestring_ascii
from typing import TYPE_CHECKING, Annotated, Any, Generic, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    WithJsonSchema,
)

from agent.config.values import (
    DURATION_SCHEMA,
    as_text,
    format_duration,
    long_enough,
    parse_duration,
)
from agent.config.yaml_document import Document, Loc, Source, nearest, read
from agent.entries.entry import Entry, EntryId, EntrySet, Share
from agent.entries.template import SpiffeIdTemplate, check_not_reserved, has_placeholders
from agent.errors import ConfigError, Problem, Severity
from agent.spiffe.ids import SCHEME, SpiffeId, TrustDomain
from attestors.api import Selector

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

# The limit that SPIRE has, so that a hint fits both.
MAX_HINT_BYTES = 1024
# RFC 1035 section 2.3.4, as text without the trailing dot.
MAX_DNS_NAME = 253
MAX_DNS_LABEL = 63

_ID = re.compile(r"[A-Za-z0-9._-]{1,255}")
_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedEntries:
    """Valid entries, and warnings about them."""

    entries: EntrySet
    warnings: tuple[Problem, ...] = ()


# --- fields ------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class _Rules:
    """The context of the validation of entries; pydantic hands it to the validators."""

    trust_domain: TrustDomain
    selector_types: frozenset[str]
    max_svid_ttl: timedelta | None
    now: datetime | None
    # Entries repeat few selectors often: one shared object each saves time and half the memory.
    selectors: dict[str, Selector] = field(default_factory=dict)


def _rules(info: ValidationInfo) -> _Rules:
    rules = info.context
    if not isinstance(rules, _Rules):
        raise TypeError("entries are validated by parse_entries only")
    return rules


def _parse_id(value: object) -> str:
    text = as_text(value)
    if not _ID.fullmatch(text):
        raise ValueError(f"{text[:300]!r} may hold only A-Z, a-z, 0-9, '.', '_', '-'; at most 255")
    return text


def _parse_spiffe_id(value: object, info: ValidationInfo) -> SpiffeId | SpiffeIdTemplate:
    text, own = as_text(value), _rules(info).trust_domain
    path = text if text.startswith("/") else _path_of(text, own)
    if has_placeholders(path):
        return SpiffeIdTemplate(own, path)
    spiffe_id = SpiffeId(own, path)
    check_not_reserved(spiffe_id)
    return spiffe_id


def _path_of(text: str, own: TrustDomain) -> str:
    if "://" not in text:
        raise ValueError(f"{text!r} is neither a path such as /payments/api nor a {SCHEME} URI")
    # SpiffeId.parse refuses placeholders; SpiffeIdTemplate validates the path of a template.
    name, slash, path = text.removeprefix(SCHEME).partition("/")
    if not has_placeholders(path):
        name = SpiffeId.parse(text).trust_domain.name
    if name != own.name:
        raise ValueError(
            f"trust domain {name!r} is not the agent's, {own.name!r}:"
            " it issues no identities of other trust domains"
        )
    return slash + path


def _parse_selector(value: object, info: ValidationInfo) -> Selector:
    text = as_text(value)
    known = _rules(info).selectors
    if (selector := known.get(text)) is None:
        selector = known[text] = Selector.parse(text)
    return selector


def _not_empty(selectors: tuple[Selector, ...]) -> tuple[Selector, ...]:
    if not selectors:
        raise ValueError("list at least one, such as unix:uid:1000")
    return selectors


def _parse_svid_ttl(value: timedelta, info: ValidationInfo) -> timedelta:
    limit = _rules(info).max_svid_ttl
    if limit is not None and value > limit:
        raise ValueError(
            f"{format_duration(value)} is more than {format_duration(limit)}, a sixth of"
            " x509_ca_ttl: a longer SVID could outlive the authority that signed it"
        )
    return long_enough(value)


def _parse_dns_name(value: object) -> str:
    text = as_text(value)
    if len(text) > MAX_DNS_NAME:
        raise ValueError(f"a DNS name has at most {MAX_DNS_NAME} characters, not {len(text)}")
    labels = text.removeprefix("*.").split(".")
    for label in labels:
        _check_dns_label(label, text)
    if labels[-1].isdigit():
        raise ValueError(f"{text!r} is an IP address or a number, not a DNS name")
    return text


def _check_dns_label(label: str, name: str) -> None:
    if not label:
        raise ValueError(f"{name!r} has an empty label (a stray dot)")
    if len(label) > MAX_DNS_LABEL:
        raise ValueError(f"{name!r} has a label of more than {MAX_DNS_LABEL} characters")
    if not _LABEL.fullmatch(label):
        raise ValueError(
            f"{name!r} is not a DNS name: a label holds a-z, 0-9 and '-', which neither begins nor"
            " ends it; a wildcard is the whole first label ('*.')"
        )
    # RFC 5891 section 4.2.3.1 reserves these two characters for encoded names.
    if label[2:4] == "--" and not label.lower().startswith("xn--"):
        raise ValueError(f"{name!r} has '--' where only names of the form 'xn--…' may have it")


def _parse_hint(value: object) -> str:
    text = as_text(value)
    if len(text.encode()) > MAX_HINT_BYTES:
        raise ValueError(f"longer than {MAX_HINT_BYTES} bytes")
    if _CONTROL.search(text):
        raise ValueError("control characters, such as line ends, are not allowed")
    return text


def _parse_partner(value: object, info: ValidationInfo) -> TrustDomain:
    partner = TrustDomain(as_text(value).removeprefix(SCHEME))
    if partner == _rules(info).trust_domain:
        raise ValueError(f"{partner.name!r} is the agent's own trust domain: remove it")
    return partner


def _parse_instant(value: object) -> datetime:
    text = as_text(value)
    advice = "write it with a time and a time zone, such as 2027-01-01T00:00:00Z"
    try:
        instant = datetime.fromisoformat(text)
        if instant.tzinfo is not None:
            # Certificates count in whole seconds, and none may outlive its entry.
            return instant.astimezone(UTC).replace(microsecond=0)
    except (ValueError, OverflowError):
        raise ValueError(f"{text!r} is not a date and time: {advice}") from None
    raise ValueError(f"{text!r} has no time zone: {advice}")


def _string(**rules: object) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", **rules})


_PARTNER = _string(examples=["partner.example"])
_SvidTtl = Annotated[
    timedelta | None,
    BeforeValidator(parse_duration),
    AfterValidator(_parse_svid_ttl),
    DURATION_SCHEMA,
]


class EntryConfig(BaseModel):
    """A registration entry as operators write it."""

    # No field accepts null: a default of None means "left out" and is not validated.
    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Annotated[str, BeforeValidator(_parse_id), _string(pattern=f"^{_ID.pattern}$")] = ""
    """The entry's name, unique in all files. Default: derived from spiffe_id and selectors."""
    spiffe_id: Annotated[
        Any,
        BeforeValidator(_parse_spiffe_id),
        _string(pattern="^(/|spiffe://)", examples=["/payments/api", "/user/{unix:user}"]),
    ]
    """The identity: a path in the agent's trust domain, or the full spiffe:// URI. {type:kind} in
    it is replaced by the text after type:kind: in a selector of the process."""
    selectors: Annotated[
        tuple[
            Annotated[
                Selector,
                BeforeValidator(_parse_selector),
                _string(pattern="^[A-Za-z0-9_-]{1,64}:.", examples=["unix:uid:1000"]),
            ],
            ...,
        ],
        AfterValidator(_not_empty),
        Field(json_schema_extra={"minItems": 1}),
    ]
    """Selectors `type:value`. The entry matches a process that has all of them."""
    x509_svid_ttl: _SvidTtl = None
    """Lifetime of its X.509-SVIDs, instead of authority.x509_svid_ttl."""
    jwt_svid_ttl: _SvidTtl = None
    """Lifetime of its JWT-SVIDs, instead of authority.jwt_svid_ttl."""
    dns_names: tuple[Annotated[str, BeforeValidator(_parse_dns_name), _string()], ...] = ()
    """DNS names in its X.509-SVIDs, for peers that verify host names."""
    hint: Annotated[str, BeforeValidator(_parse_hint), _string()] = ""
    """A text by which a process with several identities recognises this one."""
    federates_with: tuple[
        Annotated[TrustDomain, BeforeValidator(_parse_partner), _PARTNER], ...
    ] = ()
    """Foreign trust domains whose SVIDs the process has to verify."""
    expires_at: Annotated[
        datetime | None, BeforeValidator(_parse_instant), _string(format="date-time")
    ] = None
    """The entry stops matching at this instant. Needs a time zone."""
    share: Share = Share.ENTRY
    """`entry`: all its processes share one X.509 key. `process`: each process has its own."""


_Item = TypeVar("_Item")


class EntriesFile(BaseModel, Generic[_Item]):
    """Registration entries of the vouchd agent."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    entries: list[_Item] | None
    """The entries. A process gets the identity of every entry that matches; the first is its
    default."""


# --- files -------------------------------------------------------------------------------------
def parse_entries(
    sources: Sequence[Source],
    trust_domain: TrustDomain,
    selector_types: frozenset[str],
    *,
    max_svid_ttl: timedelta | None = None,
    now: datetime | None = None,
) -> LoadedEntries:
    """Parse the entries of several files, in the order given.

    Args:
        sources: the files; an empty one holds no entries.
        trust_domain: the agent's own; every SPIFFE ID must be in it.
        selector_types: the types that enabled attestors produce; other types get a warning.
        max_svid_ttl: the longest TTL that an entry may have; None for no limit.
        now: if given, expired entries get a warning.

    Raises:
        ConfigError: with every mistake in all files.
    """
    reader = _Reader(_Rules(trust_domain, selector_types, max_svid_ttl, now))
    for source in sources:
        reader.read(source)
    errors = [each for each in reader.problems if each.severity is Severity.ERROR]
    if errors:
        raise ConfigError(errors)
    return LoadedEntries(
        entries=EntrySet(tuple(reader.entries)), warnings=tuple(sorted(reader.problems))
    )


class _Reader:
    """Collects entries and problems file by file, and finds duplicates across files."""

    def __init__(self, rules: _Rules) -> None:
        self.entries: list[Entry] = []
        self.problems: list[Problem] = []
        self._rules = rules
        self._ids: dict[EntryId, Entry] = {}
        self._alike: dict[tuple[str, frozenset[Selector]], Entry] = {}

    def read(self, source: Source) -> None:
        try:
            document = read(source)
            self.problems += document.problems
            if document.data is None:
                return
            # Any: each entry is validated alone, so that one mistake hides no other.
            file = document.validate(EntriesFile[Any], document.data)
        except ConfigError as error:
            self.problems += error.problems
            return
        if file.entries:
            lines = document.lines(("entries",))
            for number, (data, line) in enumerate(zip(file.entries, lines, strict=True)):
                self._read_entry(document, ("entries", number), data, line)

    def _read_entry(self, document: Document, loc: Loc, data: object, line: int) -> None:
        try:
            config = document.validate(EntryConfig, data, loc=loc, context=self._rules)
        except ConfigError as error:
            self.problems += error.problems
            return
        entry = _entry(config, f"{document.name}:{line}")
        self.problems += self._collisions(document, loc, entry)
        for where, message in _warnings(config, entry, self._rules):
            warning = document.problem((*loc, *where), message, severity=Severity.WARNING)
            self.problems.append(warning)
        self.entries.append(entry)

    def _collisions(self, document: Document, loc: Loc, entry: Entry) -> Iterator[Problem]:
        other = self._alike.setdefault((entry.spiffe_id.path, entry.selectors), entry)
        if other is not entry:
            message = (
                f"the entry at {other.origin} has the same spiffe_id and selectors: remove one"
            )
            yield document.problem(loc, message)
        other = self._ids.setdefault(entry.id, entry)
        # Equal entries without an id derive the same one; that problem is reported above.
        if other is not entry and "id" in document.data["entries"][loc[1]]:
            message = f"id {entry.id!r} is already used by the entry at {other.origin}"
            yield document.problem((*loc, "id"), message)


def _entry(config: EntryConfig, origin: str) -> Entry:
    selectors = frozenset(config.selectors)
    return Entry(
        id=EntryId(config.id or _derived_id(config.spiffe_id, selectors)),
        spiffe_id=config.spiffe_id,
        selectors=selectors,
        x509_svid_ttl=config.x509_svid_ttl,
        jwt_svid_ttl=config.jwt_svid_ttl,
        dns_names=tuple(dict.fromkeys(config.dns_names)),
        hint=config.hint,
        federates_with=tuple(dict.fromkeys(config.federates_with)),
        expires_at=config.expires_at,
        share=config.share,
        origin=origin,
    )


def _derived_id(spiffe_id: object, selectors: Iterable[Selector]) -> str:
    """Derive an ID from identity and selectors alone, so that moving an entry keeps its ID."""
    texts = map(encode_basestring_ascii, (str(spiffe_id), *sorted(map(str, selectors))))
    return hashlib.sha256(f"[{', '.join(texts)}]".encode()).hexdigest()[:32]


def _warnings(config: EntryConfig, entry: Entry, rules: _Rules) -> Iterator[tuple[Loc, str]]:
    """Yield the place and text of each warning: valid, but probably a mistake."""
    for number, selector in enumerate(config.selectors):
        if selector.type not in rules.selector_types:
            advice = nearest(selector.type, rules.selector_types)
            message = f"no enabled attestor produces {selector.type!r} selectors; {advice}"
            yield ("selectors", number), message
    if isinstance(entry.spiffe_id, SpiffeIdTemplate):
        for kind in sorted(entry.spiffe_id.selector_types - rules.selector_types):
            advice = nearest(kind, rules.selector_types)
            message = f"no enabled attestor produces {kind!r} selectors to fill in; {advice}"
            yield ("spiffe_id",), message
    for number, partner in enumerate(config.federates_with):
        message = f"no bundle of {partner.name!r}: federation is not supported yet"
        yield ("federates_with", number), message
    if entry.expires_at and rules.now and entry.has_expired(rules.now):
        yield ("expires_at",), f"expired at {entry.expires_at.isoformat()}: it matches nothing"
    for key in ("selectors", "dns_names", "federates_with"):
        written = getattr(config, key)
        if len(written) != len(getattr(entry, key)):
            yield from _repetitions(key, written)


def _repetitions(key: str, values: Iterable[object]) -> Iterator[tuple[Loc, str]]:
    seen = set()
    for number, value in enumerate(values):
        if value in seen:
            yield (key, number), f"'{value}' is listed twice"
        seen.add(value)
