"""An explanation names the entries that match, the nearest that do not, and what they lack."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from agent.entries.entry import Entry, EntryId, EntrySet
from agent.entries.explain import Lacking, Verdict, explain
from agent.entries.template import SpiffeIdTemplate
from agent.spiffe.ids import SpiffeId, TrustDomain
from agent.telemetry.plain import to_plain
from attestors.api import Selector
from tests.support.fakes import START

TD = TrustDomain("example.org")


def entry(name: str, *selectors: str, **fields: Any) -> Entry:
    path = SpiffeId(TD, f"/{name}")
    return Entry(
        **{
            "id": EntryId(name),
            "spiffe_id": path,
            "selectors": frozenset(map(Selector.parse, selectors)),
            "origin": f"e.yaml:{name}",
            **fields,
        }
    )


def verdict(entries: list[Entry], *selectors: str) -> Verdict:
    facts, loaded = frozenset(map(Selector.parse, selectors)), EntrySet(tuple(entries))
    return explain(loaded, facts, START)


def test_explanation_names_the_required_selector_and_the_one_found() -> None:
    said = verdict(
        [entry("a", "unix:uid:1001", "unix:gid:5")], "unix:uid:1000", "unix:gid:5", "unix:user:bob"
    )
    assert said.matched == ()
    [missed] = said.missed
    assert missed.lacking == (Lacking(wanted="unix:uid:1001", found=("unix:uid:1000",)),)
    assert (missed.entry_id, missed.origin) == ("a", "e.yaml:a")
    assert missed.spiffe_id == "spiffe://example.org/a"
    assert said.selectors == ("unix:gid:5", "unix:uid:1000", "unix:user:bob")


def test_nearest_entries_come_first_and_are_at_most_three() -> None:
    entries = [entry(f"far{n}", f"unix:uid:{n}") for n in range(9)]
    entries += [entry("near", "unix:gid:5", "unix:uid:1")]
    entries += [entry("nearer", "unix:gid:5", "unix:path:/x", "unix:uid:1")]
    said = verdict(entries, "unix:gid:5", "unix:path:/y", "unix:uid:99")
    assert [missed.entry_id for missed in said.missed] == ["near", "nearer"]
    said = verdict(entries, "unix:user:nobody")
    assert [missed.entry_id for missed in said.missed] == ["far0", "far1", "far2"]


def test_matching_entry_is_named_with_its_origin() -> None:
    template = SpiffeIdTemplate(TD, "/user/{unix:user}")
    said = verdict([entry("a", "unix:uid:1", spiffe_id=template)], "unix:uid:1", "unix:user:ann")
    [matched] = said.matched
    assert (matched.entry_id, matched.origin) == ("a", "e.yaml:a")
    assert matched.spiffe_id == "spiffe://example.org/user/ann"
    assert said.missed == ()


def test_entry_whose_template_gives_no_spiffe_id_has_the_reason() -> None:
    template = SpiffeIdTemplate(TD, "/user/{unix:user}")
    said = verdict([entry("a", "unix:uid:1", spiffe_id=template)], "unix:uid:1")
    [missed] = said.missed
    assert "{unix:user} has no value" in missed.no_spiffe_id
    assert missed.spiffe_id == "spiffe://example.org/user/{unix:user}"


def test_expired_entry_has_the_time_of_its_expiry() -> None:
    then = START - timedelta(hours=1)
    [missed] = verdict([entry("a", "unix:uid:1", expires_at=then)], "unix:uid:1").missed
    assert (missed.lacking, missed.expired_at) == ((), then)


def test_values_of_environment_variables_are_hidden() -> None:
    said = verdict(
        [entry("a", "docker:env:TOKEN=right", "docker:env:OTHER=x")],
        "docker:env:TOKEN=secret",
        "docker:env:MODE=prod",
        "docker:label:env:visible",
    )
    assert "secret" not in str(to_plain(said))
    assert "right" not in str(to_plain(said))
    assert "prod" not in str(to_plain(said))
    [missed] = said.missed
    assert missed.lacking == (
        Lacking(wanted="docker:env:OTHER=<hidden>"),
        Lacking(wanted="docker:env:TOKEN=<hidden>", found=("docker:env:TOKEN=<hidden>",)),
    )


def test_explanation_converts_to_plain_data() -> None:
    plain = to_plain(verdict([entry("a", "unix:uid:1", expires_at=START)], "unix:uid:1"))
    assert plain["missed"][0]["expired_at"] == "2026-01-01T12:00:00Z"
    assert plain["selectors"] == ["unix:uid:1"]
    assert to_plain({"a": frozenset({Selector("x", "2"), Selector("x", "1")})}) == {
        "a": ["x:1", "x:2"]
    }
    assert to_plain([1, 2.5, None, True, "t", (Selector("x", "y"),)])[:5] == [
        1,
        2.5,
        None,
        True,
        "t",
    ]
