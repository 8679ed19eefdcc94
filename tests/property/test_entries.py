"""Matching equals a naive scan, printing and parsing are inverse, and no bytes crash a parser."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import PurePath

from hypothesis import example, given
from hypothesis import strategies as st

from agent.config.settings import parse_settings
from agent.config.values import MAX_DURATION, format_duration, parse_duration
from agent.config.yaml_document import Source
from agent.entries.entry import Entry, EntryId, EntrySet
from agent.entries.index import SelectorIndex
from agent.entries.schema import parse_entries
from agent.errors import ConfigError
from agent.spiffe.ids import SpiffeId, TrustDomain
from attestors.api import Options, Selector

NOW = datetime(2026, 6, 1, tzinfo=UTC)
OWN = TrustDomain("example.org")

SELECTORS = st.builds(Selector, st.sampled_from(["unix", "docker"]), st.sampled_from("abcde"))
SETS = st.frozensets(SELECTORS, max_size=6)
EXPIRIES = st.none() | st.integers(-2, 2).map(lambda seconds: NOW + timedelta(seconds=seconds))


@st.composite
def entry_sets(draw: st.DrawFn) -> EntrySet:
    rows = draw(st.lists(st.tuples(SETS.filter(bool), EXPIRIES), max_size=25))
    return EntrySet(
        tuple(
            Entry(
                id=EntryId(str(number)),
                spiffe_id=SpiffeId(OWN, f"/{number}"),
                selectors=selectors,
                expires_at=expires_at,
            )
            for number, (selectors, expires_at) in enumerate(rows)
        )
    )


@given(entry_sets(), SETS)
def test_match_equals_a_naive_scan(entries: EntrySet, caller: frozenset[Selector]) -> None:
    naive = tuple(
        entry
        for entry in entries.entries
        if entry.selectors.issubset(caller)
        and not (entry.expires_at is not None and entry.expires_at <= NOW)
    )
    assert entries.match(caller, NOW) == naive


@given(st.lists(SETS, max_size=60), SETS, st.integers(1, 8), st.integers(1, 3))
def test_index_finds_exactly_the_subsets(
    sets: list[frozenset[Selector]], caller: frozenset[Selector], few: int, max_depth: int
) -> None:
    found = SelectorIndex(sets, few=few, max_depth=max_depth).within(caller)
    assert found == [place for place, each in enumerate(sets) if each <= caller]


def test_many_equal_sets_are_all_found() -> None:
    equal = frozenset(Selector("unix", str(number)) for number in range(500))
    index = SelectorIndex([equal] * 100)
    assert index.within(equal) == list(range(100))
    assert index.within(equal - {Selector("unix", "7")}) == []


@given(st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True), st.text(min_size=1))
def test_printed_selector_parses_to_the_same(kind: str, value: str) -> None:
    selector = Selector(kind, value)
    assert Selector.parse(str(selector)) == selector


@given(st.integers(1, int(MAX_DURATION.total_seconds())))
def test_printed_duration_parses_to_the_same(seconds: int) -> None:
    duration = timedelta(seconds=seconds)
    assert parse_duration(format_duration(duration)) == duration


# --- arbitrary files ---------------------------------------------------------------------------
WORDS = st.sampled_from(
    [
        *["entries:", "spiffe_id:", "selectors:", "unix:uid:1", "/a", "id:", "hint:"],
        *["trust_domain:", "example.org", "attestors:", "unix", "log:", "level:"],
        *["authority:", "expires_at:", "2027-01-01T00:00:00Z", "5m", "0", "no"],
        *[
            "\n",
            "\n  ",
            "\n- ",
            "\n  - ",
            "- ",
            "[",
            "]",
            "{",
            "}",
            ": ",
            ", ",
            "&a ",
            "*a",
            "'",
            '"',
        ],
        *[
            "|",
            ">",
            "---",
            "...",
            "#",
            "<<: ",
            "? ",
            "!!str ",
            "!",
            "@",
            "%",
            "\t",
            "\r",
            "\x85",
            "\\",
        ],
        *["\ufeff", "\u2028", "é", "~", "0b_", "0x", "1:99", "1e999", ".nan", "=", "\0", "\x07"],
    ]
)
FILES = st.one_of(
    st.binary(),
    st.text().map(lambda text: text.encode(errors="surrogatepass")),
    st.lists(WORDS, max_size=40).map(lambda words: " ".join(words).encode()),
    st.lists(WORDS, max_size=40).map(lambda words: "".join(words).encode()),
)


def _loads_or_gives_a_place(content: bytes, load: Callable[[], object]) -> None:
    problems = None
    try:
        load()
    except ConfigError as error:
        problems = error.problems
    lines = content.removeprefix(b"\xef\xbb\xbf").decode(errors="replace").split("\n")
    assert problems is None or problems
    for problem in problems or ():
        assert 1 <= problem.line <= len(lines)
        assert 1 <= problem.column <= len(lines[problem.line - 1]) + 1


@given(FILES)
@example(
    b"entries: [{spiffe_id: /a, selectors: [unix:uid:1], expires_at: 0001-01-01T00:00:00+01:00}]"
)
def test_any_bytes_give_entries_or_problems_inside_the_file(content: bytes) -> None:
    source = Source(name="f", content=content)
    _loads_or_gives_a_place(
        content, lambda: parse_entries([source], OWN, frozenset({"unix"}), now=NOW)
    )


@given(FILES)
def test_any_bytes_give_settings_or_problems_inside_the_file(content: bytes) -> None:
    source = Source(name="f", content=content)
    _loads_or_gives_a_place(
        content, lambda: parse_settings(source, PurePath("/etc/vouchd"), {"unix": Options})
    )
