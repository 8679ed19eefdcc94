"""SPIRE's entries are converted, and fields without a counterpart are reported."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime, timedelta
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.config.yaml_document import Source
from agent.entries.entry import Entry
from agent.entries.schema import parse_entries
from agent.entries.spire_import import Imported, import_entries
from agent.errors import ConfigError
from agent.spiffe.ids import TrustDomain

TD = TrustDomain("example.org")
TYPES = frozenset({"unix", "k8s"})
AGENT = {"trust_domain": "example.org", "path": "/spire/agent/join_token/x"}


def spire(path: str = "/web", *selectors: str, **fields: Any) -> dict[str, Any]:
    return {
        "id": f"id-of-{path[1:]}",
        "spiffe_id": {"trust_domain": "example.org", "path": path},
        "parent_id": AGENT,
        "selectors": [
            dict(zip(("type", "value"), each.split(":", 1), strict=True))
            for each in selectors or ("unix:uid:1000",)
        ],
        "x509_svid_ttl": 0,
        "federates_with": [],
        "hint": "",
        "admin": False,
        "created_at": "1700000000",
        "downstream": False,
        "expires_at": "0",
        "dns_names": [],
        "revision_number": "3",
        "store_svid": False,
        "jwt_svid_ttl": 0,
        **fields,
    }


def imported(content: str | bytes) -> Imported:
    data = content if isinstance(content, bytes) else content.encode()
    return import_entries(Source(name="old.json", content=data), TD, TYPES)


def from_json(*entries: dict[str, Any]) -> Imported:
    return imported(json.dumps({"entries": entries, "next_page_token": ""}))


def ours(result: Imported) -> tuple[Entry, ...]:
    source = Source(name="new.yaml", content=result.text.encode())
    entries = parse_entries([source], TD, TYPES).entries.entries
    assert len(entries) == result.count
    return entries


def test_every_field_with_a_counterpart_is_converted() -> None:
    result = from_json(
        spire(
            "/web",
            "unix:uid:1000",
            "k8s:pod-label:app:web",
            x509_svid_ttl=5400,
            jwt_svid_ttl=60,
            dns_names=["web.internal"],
            federates_with=["partner.example"],
            hint="inner",
            expires_at="1900000000",
        )
    )
    [entry] = ours(result)
    assert entry.id == "id-of-web"
    assert str(entry.spiffe_id) == "spiffe://example.org/web"
    assert sorted(map(str, entry.selectors)) == ["k8s:pod-label:app:web", "unix:uid:1000"]
    assert entry.x509_svid_ttl == timedelta(minutes=90)
    assert entry.jwt_svid_ttl == timedelta(minutes=1)
    assert (entry.dns_names, entry.hint) == (("web.internal",), "inner")
    assert [domain.name for domain in entry.federates_with] == ["partner.example"]
    assert entry.expires_at == datetime.fromtimestamp(1900000000, tz=UTC)
    assert result.text.startswith("# Imported from old.json\n")
    [sentence] = result.dropped
    assert sentence.startswith("the parent of 1 entry is left out: vouchd has no nodes")


STATIC = """
apiVersion: spire.spiffe.io/v1alpha1
kind: ClusterStaticEntry
metadata: {name: db}
spec:
  spiffeID: spiffe://example.org/db
  parentID: spiffe://example.org/spire/agent/x
  selectors: ["unix:uid:5", "unix:gid:5"]
  x509SVIDTTL: 1h30m0s
  jwtSVIDTTL: 5m
  dnsNames: [db.internal]
  hint: h
  className: x
"""


def test_cluster_static_entry_is_converted() -> None:
    [entry] = ours(imported(STATIC))
    assert (entry.id, str(entry.spiffe_id)) == ("db", "spiffe://example.org/db")
    assert entry.x509_svid_ttl == timedelta(minutes=90)
    assert entry.jwt_svid_ttl == timedelta(minutes=5)
    assert entry.dns_names == ("db.internal",)


def test_documents_and_lists_are_read_and_other_kinds_reported() -> None:
    others = "---\nkind: Namespace\n---\n"
    listed = json.dumps(
        {
            "kind": "List",
            "items": [
                {
                    "kind": "ClusterStaticEntry",
                    "metadata": {"name": "two"},
                    "spec": {"spiffeID": "spiffe://example.org/two", "selectors": ["unix:uid:6"]},
                }
            ],
        }
    )
    result = imported(STATIC + others + listed)
    assert [entry.id for entry in ours(result)] == ["db", "two"]
    assert "object 2 is a Namespace, not a ClusterStaticEntry: left out" in result.dropped


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (
            spire(spiffe_id={"trust_domain": "other.org", "path": "/x"}),
            "spiffe://other.org/x is not in trust domain example.org",
        ),
        (
            spire(parent_id={"trust_domain": "example.org", "path": "/spire/server"}),
            "it describes a node",
        ),
        (spire(downstream=True), "nested server"),
        (spire(store_svid=True), "secret store"),
        (spire("/spire/x"), "reserved"),
        (spire(selectors=[]), "list at least one"),
        (spire(dns_names=["not a name"]), "not a DNS name"),
        (spire("/{unix:user}}"), "path segment"),
    ],
)
def test_entry_that_vouchd_cannot_have_is_left_out(entry: dict[str, Any], reason: str) -> None:
    result = from_json(entry, spire("/kept"))
    assert [each.id for each in ours(result)] == ["id-of-kept"]
    assert reason in result.dropped[0]
    assert result.dropped[0].startswith(f"{entry['id']} is left out")


def test_admin_flag_and_foreign_selector_types_are_reported() -> None:
    result = from_json(spire(admin=True, parent_id=None), spire("/d", "docker:label:a:b"))
    assert len(ours(result)) == 2
    assert "id-of-web: 'admin' is left out: there is no server to administer" in result.dropped
    assert any("'docker' selectors" in each for each in result.dropped)


def test_entries_that_differ_only_in_their_parent_become_one() -> None:
    result = from_json(spire(id="one"), spire(id="two"))
    assert [entry.id for entry in ours(result)] == ["one"]
    assert result.dropped[0].startswith("two is left out: another entry has the same SPIFFE ID")


def test_duplicate_ids_get_a_number() -> None:
    result = from_json(spire("/a", id="x"), spire("/b", id="x"), spire("/c", id="x"))
    assert [entry.id for entry in ours(result)] == ["x", "x-2", "x-3"]
    assert len(ours(from_json(spire("/a", id=""), spire("/b", id="")))) == 2


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b'{"entries": [', "old.json:1:14: "),
        (b'{"entries": "x"}', "no list of entries"),
        (b'{"entries": ["x"]}', r"entries\[0\] is not an entry"),
        (b'{"entries": [{"id": "x"}]}', r"entries\[0\] is not an entry"),
        (b'{"\xff": 1}', "not UTF-8"),
        (
            json.dumps({"entries": [spire(x509_svid_ttl=-1)]}).encode(),
            r"entries\[0\].x509_svid_ttl",
        ),
        (
            json.dumps({"entries": [spire(expires_at="9" * 30)]}).encode(),
            r"entries\[0\].expires_at",
        ),
        (STATIC.replace("1h30m0s", "soon").encode(), "object 1.x509SVIDTTL: Input should be"),
        (b"a: [", "old.json:1:5: "),
        (b"\x00", "not YAML"),
        (b"", "it is empty"),
        (b"- 1", "object 1 is neither"),
        (b"[]", "object 1 is neither"),
        (b"kind: ClusterStaticEntry", "object 1 has no metadata or no spec"),
    ],
)
def test_unreadable_file_is_refused_with_the_place(content: bytes, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        imported(content)


def test_long_id_with_a_number_is_still_valid_or_left_out() -> None:
    longest = "x" * 255
    result = from_json(spire("/a", id=longest), spire("/b", id=longest))
    assert [entry.id for entry in ours(result)] == [longest]
    assert "at most 255" in result.dropped[0]


def _operations(*entries: dict[str, Any]) -> int:
    """Count the bytecode instructions that all modules of the agent execute for an import."""
    count = 0

    def trace(frame: FrameType, event: str, _argument: object) -> Any:
        nonlocal count
        if not str(frame.f_globals.get("__name__")).startswith("agent."):
            return None
        frame.f_trace_lines, frame.f_trace_opcodes = False, True
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        from_json(*entries)
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize("entry_id", ["", "same"])
def test_work_grows_in_proportion_to_the_entries(entry_id: str) -> None:
    few, many = (
        _operations(*(spire(f"/{n}", id=entry_id or str(n)) for n in range(size)))
        for size in (10, 40)
    )
    assert many < 5 * few


PATHS = st.from_regex(r"(/[a-z0-9][a-z0-9_-]{0,8}){1,3}", fullmatch=True).filter(
    lambda path: not path.startswith("/spire")
)
ENTRIES = st.lists(
    st.builds(
        spire,
        PATHS,
        st.from_regex(r"unix:(uid|gid):[0-9]{1,5}", fullmatch=True),
        id=st.from_regex(r"[A-Za-z0-9._-]{1,20}", fullmatch=True),
        x509_svid_ttl=st.integers(2, 10**6),
        jwt_svid_ttl=st.sampled_from([0, 60, 61]),
        hint=st.text(st.characters(categories=["L", "N"]), max_size=20),
        expires_at=st.integers(1, 4 * 10**9).map(str),
    ),
    unique_by=(lambda entry: entry["spiffe_id"]["path"], lambda entry: entry["id"]),
)


@given(ENTRIES)
def test_converted_entry_equals_its_original(entries: list[dict[str, Any]]) -> None:
    for entry, foreign in zip(ours(from_json(*entries)), entries, strict=True):
        assert entry.id == foreign["id"]
        assert str(entry.spiffe_id) == f"spiffe://example.org{foreign['spiffe_id']['path']}"
        [selector] = entry.selectors
        assert {"type": selector.type, "value": selector.value} == foreign["selectors"][0]
        assert entry.x509_svid_ttl == timedelta(seconds=foreign["x509_svid_ttl"])
        assert (entry.jwt_svid_ttl or timedelta()).total_seconds() == foreign["jwt_svid_ttl"]
        assert entry.hint == foreign["hint"]
        assert entry.expires_at == datetime.fromtimestamp(int(foreign["expires_at"]), tz=UTC)
