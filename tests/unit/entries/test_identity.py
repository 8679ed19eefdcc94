"""Matching turns selectors into identities, and names the selectors that they rest on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from agent.entries.entry import Entry, EntryId, EntrySet, Share
from agent.entries.identity import Matches, match
from agent.entries.template import SpiffeIdTemplate
from agent.spiffe.ids import SpiffeId, TrustDomain
from attestors.api import Selector
from tests.support.fakes import START

TD = TrustDomain("example.org")
USER, UID, OTHER = (Selector.parse(t) for t in ("unix:user:ann", "unix:uid:1", "unix:uid:2"))


def entry(name: str, *selectors: Selector, **fields: Any) -> Entry:
    path = SpiffeId(TD, f"/{name}")
    return Entry(
        **{
            "id": EntryId(name),
            "spiffe_id": path,
            "selectors": frozenset(selectors or {UID}),
            **fields,
        }
    )


def of(*entries: Entry, holder: str = "process:1") -> Matches:
    return match(EntrySet(entries), frozenset({USER, UID}), holder, START)


def test_identity_has_every_field_that_shows_in_an_svid() -> None:
    ends = START.replace(year=2099)
    [found] = of(entry("a", hint="x", dns_names=("a.test",), expires_at=ends)).identities
    assert str(found.spiffe_id) == "spiffe://example.org/a"
    assert (found.entry_id, found.hint, found.dns_names) == ("a", "x", ("a.test",))
    assert found.expires_at == ends
    assert found.holder == ""


def test_moved_or_narrowed_entry_gives_the_same_identity() -> None:
    moved = replace(entry("a"), origin="elsewhere:7", selectors=frozenset({UID, USER}))
    assert of(entry("a")).identities == of(moved).identities
    assert of(entry("a")).identities != of(replace(entry("a"), hint="new")).identities


def test_share_process_gives_each_process_an_identity_of_its_own() -> None:
    alone = entry("a", share=Share.PROCESS)
    assert of(alone, holder="process:1").identities != of(alone, holder="process:2").identities
    assert of(alone).identities[0].holder == "process:1"


def test_evidence_is_the_selectors_of_entries_and_of_placeholders() -> None:
    template = SpiffeIdTemplate(TD, "/user/{unix:user}")
    assert of(entry("a")).evidence == {UID}
    matches = of(entry("a", spiffe_id=template), entry("b", OTHER))
    assert matches.evidence == {UID, USER}
    assert [str(i.spiffe_id) for i in matches.identities] == ["spiffe://example.org/user/ann"]


def test_template_without_a_value_gives_no_identity_and_a_reason() -> None:
    template = SpiffeIdTemplate(TD, "/group/{unix:group}")
    matches = of(entry("a", spiffe_id=template), entry("b"))
    assert [i.entry_id for i in matches.identities] == ["b"]
    assert matches.evidence == {UID}
    assert "{unix:group} has no value" in matches.without_id[EntryId("a")]
