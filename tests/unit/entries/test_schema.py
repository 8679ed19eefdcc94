"""Parsing registration entries: every mistake has a line, a column and a reason.

The files in tests/vectors/entries/bad list their problems in comments at the top:
`# expect: LINE:COLUMN: part of the message`. No other problem may be reported.
"""

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from agent.config.yaml_document import Source
from agent.entries.entry import Entry, EntryId, Share
from agent.entries.schema import EntryConfig, parse_entries
from agent.errors import ConfigError, Severity
from agent.spiffe.ids import SpiffeId, TrustDomain
from attestors.api import Selector

VECTORS = Path(__file__).parents[2] / "vectors/entries"
BAD = sorted((VECTORS / "bad").glob("*.yaml"))
OWN = TrustDomain("example.org")
TYPES = frozenset({"unix"})
NOW = datetime(2026, 6, 1, tzinfo=UTC)


def _source(path: Path) -> Source:
    return Source(name=path.name, content=path.read_bytes())


def _load(*contents: str, now: datetime | None = NOW) -> tuple[tuple[Entry, ...], list[str]]:
    sources = [Source(name=f"{n}.yaml", content=c.encode()) for n, c in enumerate(contents)]
    loaded = parse_entries(sources, OWN, TYPES, now=now)
    assert all(each.severity is Severity.WARNING for each in loaded.warnings)
    return loaded.entries.entries, [str(each) for each in loaded.warnings]


# --- refused files -----------------------------------------------------------------------------
def test_there_are_many_bad_files() -> None:
    assert len(BAD) >= 45


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.stem)
def test_bad_file_is_refused_with_each_mistake_at_its_place(path: Path) -> None:
    source = _source(path)
    expected = re.findall(r"# expect: (\d+):(\d+): (.*)", source.content.decode(errors="replace"))
    with pytest.raises(ConfigError) as refusal:
        parse_entries([source], OWN, TYPES, max_svid_ttl=timedelta(hours=4), now=NOW)
    found = refusal.value.problems
    assert [(p.line, p.column) for p in found] == sorted((int(a), int(b)) for a, b, _ in expected)
    for problem, (_, _, fragment) in zip(found, expected, strict=True):
        assert fragment in problem.message
        assert problem.file == path.name


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.stem)
def test_message_names_no_library_or_python_type(path: Path) -> None:
    with pytest.raises(ConfigError) as refusal:
        parse_entries([_source(path)], OWN, TYPES, max_svid_ttl=timedelta(hours=4))
    assert not re.search(
        r"pydantic|https?://errors|[Ii]nput|dictionary|instance|None", str(refusal.value)
    )


def test_error_has_the_mistakes_of_all_files_and_no_warnings() -> None:
    good = "entries: [{id: x, spiffe_id: /a, selectors: [unxi:uid:1]}]"
    syntax = "entries: ["
    twice = "entries: [{id: x, spiffe_id: /b, selectors: [unix:uid:1]}]"
    with pytest.raises(ConfigError) as refusal:
        _load(good, syntax, twice)
    assert [str(each) for each in refusal.value.problems] == [
        "1.yaml:1:11: a value is missing here",
        "2.yaml:1:16: id 'x' is already used by the entry at 0.yaml:1",
    ]


def test_duplicate_entry_is_found_across_files_in_any_spelling() -> None:
    with pytest.raises(ConfigError, match=r"1\.yaml:1:11: the entry at 0\.yaml:2 has the same"):
        _load(
            "entries:\n- {id: a, spiffe_id: /a, selectors: [unix:uid:1, unix:gid:1]}",
            "entries: [{spiffe_id: 'spiffe://example.org/a', selectors: [unix:gid:1, unix:uid:1]}]",
        )


# --- accepted files ----------------------------------------------------------------------------
@pytest.mark.parametrize("path", sorted((VECTORS / "good").glob("*.yaml")), ids=lambda p: p.stem)
def test_good_file_gives_its_entries_in_order(path: Path) -> None:
    entries = parse_entries([_source(path)], OWN, TYPES).entries.entries
    expected = re.search(r"# expect:(.*)", path.read_text(encoding="utf-8-sig"))
    paths = [entry.spiffe_id.path.removeprefix("/") for entry in entries]
    assert paths == (expected[1].split() if expected else [])


def test_entry_keeps_every_field_of_the_file() -> None:
    source = _source(VECTORS / "good/every_field.yaml")
    loaded = parse_entries([source], OWN, TYPES, max_svid_ttl=timedelta(hours=4), now=NOW)
    full, derived, by_anchor, quoted = loaded.entries.entries
    assert full == Entry(
        id=EntryId("every-field"),
        spiffe_id=SpiffeId(OWN, "/payments/api"),
        selectors=frozenset(
            {Selector("unix", "uid:1001"), Selector("unix", "path:/usr/bin/pay:ments")}
        ),
        x509_svid_ttl=timedelta(hours=4),
        jwt_svid_ttl=timedelta(seconds=90),
        dns_names=(
            "payments.internal",
            "*.payments.internal",
            "xn--bcher-kva.example",
            "localhost",
            "3com.example",
        ),
        hint="internal",
        federates_with=(TrustDomain("partner.example"),),
        expires_at=datetime(2027, 1, 1, tzinfo=UTC),
        origin="every_field.yaml:3",
    )
    assert derived.selectors == by_anchor.selectors == {Selector("unix", "uid:1002")}
    assert (quoted.hint, quoted.origin) == ("no", "every_field.yaml:16")
    assert (derived.x509_svid_ttl, derived.expires_at, derived.hint) == (None, None, "")


def test_no_files_give_no_entries() -> None:
    assert _load() == ((), [])


def test_derived_id_depends_only_on_spiffe_id_and_selectors() -> None:
    selectors = [f"unix:gid:{number}" for number in range(8)]
    ((first,), _) = _load(f"entries: [{{spiffe_id: /a, selectors: {json.dumps(selectors)}}}]")
    ((second, other), _) = _load(
        f"""
entries:
  - {{spiffe_id: 'spiffe://example.org/a', hint: x, selectors: {json.dumps(selectors[::-1])}}}
  - {{spiffe_id: /b, selectors: {json.dumps(selectors)}}}
"""
    )
    # A literal: an id that changes with a release would look like another entry in every log.
    assert first.id == second.id == "378b229967a09198aba6387b454575f3"
    assert other.id != first.id


@pytest.mark.parametrize(
    ("line", "warnings"),
    [
        (
            "selectors: [unxi:uid:0]",
            ["4:17: no enabled attestor produces 'unxi' selectors; did you mean 'unix'?"],
        ),
        (
            "selectors: [k8s:ns:a]",
            ["4:17: no enabled attestor produces 'k8s' selectors; known: unix"],
        ),
        ("selectors: [unix:uid:1, unix:gid:1, unix:uid:1]", ["4:41: 'unix:uid:1' is listed twice"]),
        ("dns_names: [a.b, c.d, a.b]", ["4:27: 'a.b' is listed twice"]),
        (
            "federates_with: [p.q, p.q]",
            [
                "4:22: no bundle of 'p.q': federation is not supported yet",
                "4:27: 'p.q' is listed twice",
                "4:27: no bundle of 'p.q': federation is not supported yet",
            ],
        ),
        (
            "expires_at: 2026-06-01T00:00:00Z",
            ["4:17: expired at 2026-06-01T00:00:00+00:00: it matches nothing"],
        ),
        ("expires_at: 2026-06-01T00:00:01Z", []),
    ],
)
def test_probable_mistake_is_a_warning(line: str, warnings: list[str]) -> None:
    selectors = "" if line.startswith("selectors") else "    selectors: [unix:uid:1]\n"
    content = f"entries:\n  - spiffe_id: /a\n    # a remark\n    {line}\n{selectors}"
    (entry,), found = _load(content)
    assert found == [
        f"0.yaml:{each.split(': ')[0]}: warning: {each.split(': ', 1)[1]}" for each in warnings
    ]
    assert len(entry.dns_names) == len(set(entry.dns_names))
    assert len(entry.federates_with) == len(set(entry.federates_with))


def test_template_without_an_attestor_for_its_placeholder_gets_a_warning() -> None:
    (entry,), found = _load(
        "entries:\n"
        "  - spiffe_id: spiffe://example.org/{unix:user}/{unxi:uid}\n"
        "    share: process\n"
        "    selectors: [unix:uid:1]\n"
    )
    assert str(entry.spiffe_id) == "spiffe://example.org/{unix:user}/{unxi:uid}"
    assert entry.share is Share.PROCESS
    [warning] = found
    assert warning.startswith("0.yaml:2:16: warning: no enabled attestor produces 'unxi'")
    assert warning.endswith("selectors to fill in; did you mean 'unix'?")


def test_expiry_is_cut_to_a_whole_second() -> None:
    (entry,), _ = _load(
        "entries: [{spiffe_id: /a, selectors: [unix:uid:1], expires_at: '2027-01-01T00:00:00.9Z'}]"
    )
    assert entry.expires_at == datetime(2027, 1, 1, tzinfo=UTC)


def test_expired_entry_gets_no_warning_where_the_time_is_not_given() -> None:
    content = (
        "entries: [{spiffe_id: /a, selectors: [unix:uid:1], expires_at: '2020-01-01T00:00:00Z'}]"
    )
    assert _load(content, now=None)[1] == []
    assert len(_load(content)[1]) == 1


def test_entry_model_refuses_to_validate_outside_parse_entries() -> None:
    data = {"spiffe_id": "/a", "selectors": ["unix:uid:1"]}
    with pytest.raises(TypeError, match="parse_entries"):
        EntryConfig.model_validate(data)
