"""The start of an authority: first start, restart, damaged files, changed settings."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from agent.authority.authority_set import AuthorityKind, AuthoritySet
from agent.authority.embedded import FILE, AuthorityPolicy
from agent.authority.keystore import Keystore, KeystoreError
from agent.spiffe import keys
from agent.spiffe.ids import TrustDomain
from agent.spiffe.jwt_rules import validate_jwt_svid
from agent.spiffe.keys import KeyType
from agent.spiffe.x509_rules import validate_x509_svid
from tests.support.fakes import FakeClock
from tests.unit.authority.embedded.conftest import (
    DAY,
    POLICY,
    TD,
    WORKLOAD,
    Open,
    jwt_request,
    x509_request,
)


@pytest.mark.parametrize("key_type", [KeyType.EC_P256, KeyType.EC_P384, KeyType.RSA_2048])
def test_the_bundle_verifies_both_kinds_of_svids(
    open_authority: Open, clock: FakeClock, key_type: KeyType
) -> None:
    policy = AuthorityPolicy(trust_domain=TD, key_type=key_type, ttl=DAY)
    authority = open_authority(policy)
    assert authority.created
    certificate = authority.sign_x509(x509_request())
    assert validate_x509_svid([certificate], authority.bundle, clock.now()) == WORKLOAD
    token = authority.sign_jwt(jwt_request()).token
    valid = validate_jwt_svid(token, "a", {TD: authority.bundle}, clock.now())
    assert valid.spiffe_id == WORKLOAD


def test_a_restart_keeps_the_authorities_and_the_file(
    open_authority: Open, keystore: Keystore, clock: FakeClock
) -> None:
    first = open_authority()
    certificate = first.sign_x509(x509_request())
    token = first.sign_jwt(jwt_request()).token
    stored = keystore.read(FILE)
    again = open_authority()
    assert not again.created
    assert again.bundle.document() == first.bundle.document()
    assert keystore.read(FILE) == stored
    validate_x509_svid([certificate], again.bundle, clock.now())
    validate_jwt_svid(token, "a", {TD: again.bundle}, clock.now())


def damage(stored: bytes) -> dict[str, bytes]:
    document = json.loads(stored)
    other = json.loads(stored)
    other["x509"][0]["key"] = keys.to_pem(keys.generate(KeyType.EC_P256)).decode()
    none_active = json.loads(stored)
    none_active["jwt"][0]["state"] = "retired"
    return {
        "empty": b"",
        "half": stored[: len(stored) // 2],
        "noise": b"\x00\xff" * 50,
        "another document": b'{"version": 1}',
        "another version": json.dumps({**document, "version": 99}).encode(),
        "a foreign key": json.dumps(other).encode(),
        "no active authority": json.dumps(none_active).encode(),
    }


@pytest.mark.parametrize("kind", damage(b'{"x509": [{}], "jwt": [{}]}'))
def test_error_about_a_damaged_file_names_the_file_and_keeps_it(
    open_authority: Open, keystore: Keystore, kind: str
) -> None:
    open_authority()
    stored = keystore.read(FILE)
    assert stored is not None
    broken = damage(stored)[kind]
    keystore.write(FILE, broken)
    with pytest.raises(KeystoreError, match=r"authority\.json cannot be used: .*backup") as caught:
        open_authority()
    assert keystore.read(FILE) == broken
    assert "PRIVATE KEY" not in str(caught.value)


def test_the_data_of_another_trust_domain_is_refused(
    open_authority: Open, keystore: Keystore
) -> None:
    open_authority()
    stored = keystore.read(FILE)
    other = AuthorityPolicy(
        trust_domain=TrustDomain("other.test"), key_type=KeyType.EC_P256, ttl=DAY
    )
    with pytest.raises(KeystoreError, match=r"example\.org"):
        open_authority(other)
    assert keystore.read(FILE) == stored


async def test_a_changed_policy_applies_to_new_authorities_and_is_stored(
    open_authority: Open,
) -> None:
    authority = open_authority()
    assert authority.authorities.longest_svid == DAY / 6
    longer = replace(POLICY, key_type=KeyType.EC_P384, ttl=6 * DAY)
    await authority.adopt(longer)
    assert authority.authorities.longest_svid == DAY
    await authority.prepare(AuthorityKind.JWT)
    prepared = authority.authorities.jwt[-1]
    assert prepared.not_after - prepared.not_before == 6 * DAY
    await authority.adopt(POLICY)
    again = open_authority()
    assert again.authorities.longest_svid == DAY, (
        "SVIDs with the longer lifetime may still be valid"
    )
    assert again.bundle.document() == authority.bundle.document()


def test_a_longer_ttl_at_the_start_is_stored(open_authority: Open, keystore: Keystore) -> None:
    open_authority()
    open_authority(replace(POLICY, ttl=6 * DAY))
    assert open_authority().authorities.longest_svid == DAY
    stored = keystore.read(FILE)
    assert stored is not None
    assert AuthoritySet.parse(stored, TD).longest_svid == DAY
