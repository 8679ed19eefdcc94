"""The data directory of the first edition: this edition reads it, and writes the same form."""

from __future__ import annotations

import datetime as dt
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from agent.authority.authority_set import AuthoritySet, State
from agent.authority.embedded import FILE, AuthorityPolicy, EmbeddedAuthority
from agent.authority.keystore import Keystore
from agent.spiffe.ids import TrustDomain
from agent.spiffe.keys import KeyType
from agent.svids.disk_cache import DiskCache, cache_secret
from tests.support.fakes import START, FakeClock, FakeLog, identity

STORED = Path(__file__).parents[2] / "vectors/first_edition"
TD = TrustDomain("example.org")
HOUR = dt.timedelta(hours=1)
POLICY = AuthorityPolicy(trust_domain=TD, key_type=KeyType.EC_P256, ttl=24 * HOUR)
A = identity("a")
B = identity(
    "b",
    hint="internal",
    dns_names=("b.internal",),
    x509_svid_ttl=2 * HOUR,
    jwt_svid_ttl=dt.timedelta(minutes=2),
    federates_with=(TrustDomain("other.example"),),
    expires_at=START + dt.timedelta(days=300),
)


@pytest.fixture
def keystore(tmp_path: Path) -> Iterator[Keystore]:
    directory = tmp_path / "data"
    directory.mkdir(0o700)
    for name in (FILE, "svids.cache", "svids.key"):
        shutil.copyfile(STORED / name, directory / name)
        (directory / name).chmod(0o600)
    with closing(Keystore(directory)) as keystore:
        yield keystore


def test_authority_json_reads_back_to_the_same_bytes() -> None:
    stored = (STORED / FILE).read_bytes()
    authorities = AuthoritySet.parse(stored, TD)
    assert [(a.kind, a.state) for a in authorities.all] == [
        (kind, state)
        for kind in ("x509", "jwt")
        for state in (State.TAINTED, State.RETIRED, State.ACTIVE, State.PREPARED)
    ]
    assert authorities.to_json() == stored


def test_an_update_changes_no_file_and_serves_the_stored_svids(keystore: Keystore) -> None:
    clock, lines = FakeClock(), FakeLog()
    authority = EmbeddedAuthority.open(POLICY, keystore, clock, lines.log)
    with closing(authority):
        cache = DiskCache(
            keystore, cache_secret(keystore, None), lambda: authority.bundle, clock, lines.log
        )
        cache.load()
        found = [cache.find(A), cache.find(B)]
        assert [svid and (svid.serial, svid.renew_at) for svid in found] == [
            (164779703273081681567024524598193598744, START + HOUR / 2),
            (46311826482526765979989408116237130364, START + HOUR),
        ]
    assert not [line for line in lines.lines if line["level"] != "debug"]
    assert {each.name: each.read_bytes() for each in keystore.directory.iterdir()} == {
        name: (STORED / name).read_bytes() for name in (FILE, "svids.cache", "svids.key")
    }
