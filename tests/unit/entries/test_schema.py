"""Registration entries: every mistake has a line, a column and a reason; every match is exact.

The files in tests/vectors/entries/bad say themselves what is wrong with them, in comments at the
top: `# expect: LINE:COLUMN: part of the message`. No other problem may be reported.
"""

import json
import re
from collections.abc import Set as AbstractSet
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import ClassVar

import pytest

from agent.config.yaml_document import Source
from agent.entries.entry import Entry, EntryId, EntrySet, Share
from agent.entries.index import FEW
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


# --- files that are refused --------------------------------------------------------------------
def test_there_are_many_bad_files() -> None:
    assert len(BAD) >= 45


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.stem)
def test_a_bad_file_is_refused_for_its_mistakes_where_they_are(path: Path) -> None:
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
def test_no_message_speaks_of_the_machinery(path: Path) -> None:
    with pytest.raises(ConfigError) as refusal:
        parse_entries([_source(path)], OWN, TYPES, max_svid_ttl=timedelta(hours=4))
    assert not re.search(
        r"pydantic|https?://errors|[Ii]nput|dictionary|instance|None", str(refusal.value)
    )


def test_mistakes_of_all_files_are_told_at_once_and_warnings_are_left_for_later() -> None:
    good = "entries: [{id: x, spiffe_id: /a, selectors: [unxi:uid:1]}]"
    syntax = "entries: ["
    twice = "entries: [{id: x, spiffe_id: /b, selectors: [unix:uid:1]}]"
    with pytest.raises(ConfigError) as refusal:
        _load(good, syntax, twice)
    assert [str(each) for each in refusal.value.problems] == [
        "1.yaml:1:11: a value is missing here",
        "2.yaml:1:16: id 'x' is already used by the entry at 0.yaml:1",
    ]


def test_entries_are_alike_across_files_however_they_are_written() -> None:
    with pytest.raises(ConfigError, match=r"1\.yaml:1:11: the entry at 0\.yaml:2 has the same"):
        _load(
            "entries:\n- {id: a, spiffe_id: /a, selectors: [unix:uid:1, unix:gid:1]}",
            "entries: [{spiffe_id: 'spiffe://example.org/a', selectors: [unix:gid:1, unix:uid:1]}]",
        )


# --- files that are taken ----------------------------------------------------------------------
@pytest.mark.parametrize("path", sorted((VECTORS / "good").glob("*.yaml")), ids=lambda p: p.stem)
def test_a_good_file_gives_its_entries_in_order(path: Path) -> None:
    entries = parse_entries([_source(path)], OWN, TYPES).entries.entries
    expected = re.search(r"# expect:(.*)", path.read_text(encoding="utf-8-sig"))
    paths = [entry.spiffe_id.path.removeprefix("/") for entry in entries]
    assert paths == (expected[1].split() if expected else [])


def test_every_field_arrives() -> None:
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


def test_no_files_are_no_entries() -> None:
    assert _load() == ((), [])


def test_a_derived_id_depends_on_nothing_but_identity_and_selectors() -> None:
    selectors = [f"unix:gid:{number}" for number in range(8)]
    ((first,), _) = _load(f"entries: [{{spiffe_id: /a, selectors: {json.dumps(selectors)}}}]")
    ((second, other), _) = _load(
        f"""
entries:
  - {{spiffe_id: 'spiffe://example.org/a', hint: x, selectors: {json.dumps(selectors[::-1])}}}
  - {{spiffe_id: /b, selectors: {json.dumps(selectors)}}}
"""
    )
    # Spelt out: an id that changes with a release would look like another entry in every log.
    assert first.id == second.id == "378b229967a09198aba6387b454575f3"
    assert other.id != first.id


@pytest.mark.parametrize(
    ("line", "warnings"),
    [
        (
            "selectors: [unxi:uid:0]",
            ["4:17: no attestor that is on produces 'unxi' selectors; did you mean 'unix'?"],
        ),
        (
            "selectors: [k8s:ns:a]",
            ["4:17: no attestor that is on produces 'k8s' selectors; known: unix"],
        ),
        ("selectors: [unix:uid:1, unix:gid:1, unix:uid:1]", ["4:41: 'unix:uid:1' is listed twice"]),
        ("dns_names: [a.b, c.d, a.b]", ["4:27: 'a.b' is listed twice"]),
        (
            "federates_with: [p.q, p.q]",
            [
                "4:22: no bundle of 'p.q' is known: federation is not served yet",
                "4:27: 'p.q' is listed twice",
                "4:27: no bundle of 'p.q' is known: federation is not served yet",
            ],
        ),
        (
            "expires_at: 2026-06-01T00:00:00Z",
            ["4:17: expired at 2026-06-01T00:00:00+00:00: it matches nothing"],
        ),
        ("expires_at: 2026-06-01T00:00:01Z", []),
    ],
)
def test_what_is_probably_not_meant_is_a_warning(line: str, warnings: list[str]) -> None:
    selectors = "" if line.startswith("selectors") else "    selectors: [unix:uid:1]\n"
    content = f"entries:\n  - spiffe_id: /a\n    # a remark\n    {line}\n{selectors}"
    (entry,), found = _load(content)
    assert found == [
        f"0.yaml:{each.split(': ')[0]}: warning: {each.split(': ', 1)[1]}" for each in warnings
    ]
    assert len(entry.dns_names) == len(set(entry.dns_names))
    assert len(entry.federates_with) == len(set(entry.federates_with))


def test_a_template_may_be_a_full_id_and_earns_a_warning_if_nobody_fills_it_in() -> None:
    (entry,), found = _load(
        "entries:\n"
        "  - spiffe_id: spiffe://example.org/{unix:user}/{unxi:uid}\n"
        "    share: process\n"
        "    selectors: [unix:uid:1]\n"
    )
    assert str(entry.spiffe_id) == "spiffe://example.org/{unix:user}/{unxi:uid}"
    assert entry.share is Share.PROCESS
    [warning] = found
    assert warning.startswith("0.yaml:2:16: warning: no attestor that is on produces 'unxi'")
    assert warning.endswith("selectors to fill in; did you mean 'unix'?")


def test_an_end_is_at_a_whole_second() -> None:
    (entry,), _ = _load(
        "entries: [{spiffe_id: /a, selectors: [unix:uid:1], expires_at: '2027-01-01T00:00:00.9Z'}]"
    )
    assert entry.expires_at == datetime(2027, 1, 1, tzinfo=UTC)


def test_without_a_time_nothing_is_said_of_expiry() -> None:
    content = (
        "entries: [{spiffe_id: /a, selectors: [unix:uid:1], expires_at: '2020-01-01T00:00:00Z'}]"
    )
    assert _load(content, now=None)[1] == []
    assert len(_load(content)[1]) == 1


def test_entries_are_judged_only_by_rules() -> None:
    data = {"spiffe_id": "/a", "selectors": ["unix:uid:1"]}
    with pytest.raises(TypeError, match="parse_entries"):
        EntryConfig.model_validate(data)


# --- matching ----------------------------------------------------------------------------------
def _selectors(*texts: str) -> frozenset[Selector]:
    return frozenset(map(Selector.parse, texts))


def _entry(name: str, *selectors: str, expires_at: datetime | None = None) -> Entry:
    return Entry(
        id=EntryId(name),
        spiffe_id=SpiffeId(OWN, f"/{name}"),
        selectors=_selectors(*selectors),
        expires_at=expires_at,
    )


ENTRIES = EntrySet(
    (
        _entry("both", "unix:uid:1", "unix:gid:1"),
        _entry("other", "unix:uid:2"),
        _entry("uid", "unix:uid:1"),
        _entry("gone", "unix:uid:1", expires_at=NOW),
        _entry("going", "unix:gid:1", expires_at=NOW + timedelta(seconds=1)),
    )
)


@pytest.mark.parametrize(
    ("caller", "matched"),
    [
        (["unix:uid:1", "unix:gid:1", "unix:user:joe"], ["both", "uid", "going"]),
        (["unix:uid:1"], ["uid"]),
        (["unix:gid:1"], ["going"]),
        (["unix:uid:3"], []),
        ([], []),
    ],
)
def test_an_entry_matches_if_all_its_selectors_are_there(
    caller: list[str], matched: list[str]
) -> None:
    assert [entry.id for entry in ENTRIES.match(_selectors(*caller), NOW)] == matched


def test_equal_entries_make_equal_sets() -> None:
    assert EntrySet(ENTRIES.entries) == ENTRIES
    assert EntrySet() != ENTRIES


class Compared(frozenset[Selector]):
    """Selectors that remember how often they were compared."""

    times: ClassVar[int] = 0

    def __le__(self, other: AbstractSet[object]) -> bool:
        Compared.times += 1
        return super().__le__(other)


@pytest.mark.parametrize(
    "pairs",
    [
        [("unix:gid:0", f"unix:uid:{n}") for n in range(900)],
        [(f"k8s:ns:{n % 30}", f"k8s:sa:{n // 30}") for n in range(900)],
    ],
    ids=["all have one in common", "each is in thirty"],
)
def test_a_process_is_compared_with_few_of_many(
    pairs: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    sets = [Compared(map(Selector.parse, pair)) for pair in pairs]
    entries = EntrySet(
        tuple(replace(_entry(f"e{n}", "a:b"), selectors=each) for n, each in enumerate(sets))
    )
    monkeypatch.setattr(Compared, "times", 0)
    assert [e.id for e in entries.match(frozenset(sets[450]), NOW)] == ["e450"]
    assert Compared.times <= FEW
