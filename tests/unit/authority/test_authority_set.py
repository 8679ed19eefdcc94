from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from agent.authority.authority_set import (
    AuthorityKind,
    AuthoritySet,
    JwtAuthority,
    State,
    X509Authority,
)
from agent.authority.x509_issuer import create_x509_authority
from agent.spiffe import keys
from agent.spiffe.ids import TrustDomain
from tests.vectors.pki import forge
from tests.vectors.pki.forge import CA_KEY, LEAF_KEY, NOW, TD

if TYPE_CHECKING:
    from datetime import datetime

HOUR = timedelta(hours=1)
SECOND = timedelta(seconds=1)
LIFE = 24 * HOUR


@cache
def _x509(start: datetime = NOW, state: State = State.ACTIVE) -> X509Authority:
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = create_x509_authority(TD, key, now=start, ttl=LIFE)
    return X509Authority(state=state, since=start, certificate=certificate, key=key)


@cache
def _jwt(kid: str = "first", start: datetime = NOW, state: State = State.ACTIVE) -> JwtAuthority:
    key = ec.generate_private_key(ec.SECP256R1())
    return JwtAuthority(
        state=state, since=start, kid=kid, key=key, not_before=start, not_after=start + LIFE
    )


FIRST = AuthoritySet(
    trust_domain=TD, sequence=1, longest_svid=LIFE / 6, x509=(_x509(),), jwt=(_jwt(),)
)
SECOND_JWT = replace(FIRST, sequence=2, jwt=(_jwt(), _jwt("second", state=State.PREPARED)))
STORED: dict[str, Any] = json.loads(FIRST.to_json())


# --- invariants --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"x509": ()}, "0 active x509"),
        ({"x509": (_x509(state=State.RETIRED),)}, "0 active x509"),
        ({"x509": (_x509(), _x509(NOW + HOUR))}, "2 active x509"),
        ({"jwt": ()}, "0 active jwt"),
        ({"jwt": (_jwt(), _jwt("second"))}, "2 active jwt"),
        (
            {"jwt": (_jwt(), *(_jwt(k, state=State.PREPARED) for k in "ab"))},
            "jwt authority is prepared already",
        ),
        ({"jwt": (_jwt(), _jwt(state=State.RETIRED))}, "same key ID"),
        ({"x509": (_x509(), replace(_x509(), state=State.RETIRED))}, "same certificate"),
        ({"jwt": (_jwt(""),)}, "needs a key ID"),
        ({"sequence": -1}, "negative"),
        ({"trust_domain": TrustDomain("other.example")}, "X509-SVID 3.2"),
    ],
)
def test_a_set_that_breaks_an_invariant_cannot_be_made(
    changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        replace(FIRST, **changes)


def test_ids_are_the_key_ids_that_verifiers_see() -> None:
    assert SECOND_JWT.of(AuthorityKind.X509) == SECOND_JWT.x509
    assert SECOND_JWT.of(AuthorityKind.JWT) == SECOND_JWT.jwt
    assert [a.id for a in SECOND_JWT.jwt] == ["first", "second"]
    assert {a.kind for a in SECOND_JWT.jwt} == {AuthorityKind.JWT}
    digest = x509.SubjectKeyIdentifier.from_public_key(_x509().key.public_key()).digest
    assert (_x509().id, _x509().kind) == (digest.hex(), AuthorityKind.X509)


def test_an_authority_needs_the_key_of_its_certificate() -> None:
    with pytest.raises(ValueError, match="is not its certificate"):
        replace(_x509(), key=LEAF_KEY)


def test_the_lifetime_of_a_jwt_authority_cannot_end_before_it_begins() -> None:
    with pytest.raises(ValueError, match="before it begins"):
        replace(_jwt(), not_after=NOW)


def test_the_bundle_shows_all_authorities_and_no_private_key() -> None:
    bundle = SECOND_JWT.bundle()
    assert bundle.x509_authorities == (_x509().certificate,)
    assert dict(bundle.jwt_authorities) == {
        "first": _jwt().key.public_key(),
        "second": _jwt("second", state=State.PREPARED).key.public_key(),
    }
    assert (bundle.trust_domain, bundle.sequence) == (TD, 2)
    assert bundle.refresh_hint == timedelta(minutes=5)


# --- the form on disk --------------------------------------------------------------------------


def test_a_stored_set_reads_back_unchanged() -> None:
    again = AuthoritySet.parse(SECOND_JWT.to_json(), TD)
    assert again.to_json() == SECOND_JWT.to_json()
    assert again.bundle() == SECOND_JWT.bundle()
    assert again.longest_svid == SECOND_JWT.longest_svid
    for kept, stored in zip(again.all, SECOND_JWT.all, strict=True):
        assert kept.key.public_key() == stored.key.public_key()
        assert (kept.id, kept.state, kept.since) == (stored.id, stored.state, stored.since)
        assert (kept.not_before, kept.not_after) == (stored.not_before, stored.not_after)


def _changed(*path: str | int, to: Any) -> bytes:
    document = json.loads(json.dumps(STORED))
    *parents, last = path
    place = document
    for step in parents:
        place = place[step]
    place[last] = to
    return json.dumps(document).encode()


def _pem(**changes: Any) -> str:
    return forge.authority(**changes).public_bytes(Encoding.PEM).decode()


STRANGE_KEY = keys.to_pem(LEAF_KEY).decode()
CA_PEM = keys.to_pem(CA_KEY).decode()
NOT_SELF_SIGNED = {
    "state": "active",
    "since": "2026-01-01T00:00:00Z",
    "certificate": _pem(signer=LEAF_KEY),
    "private_key": CA_PEM,
}
NO_AUTHORITY = {
    "state": "active",
    "since": "2026-01-01T00:00:00Z",
    "certificate": _pem(ku=(forge.usage("crl_sign"), True)),
    "private_key": CA_PEM,
}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "document: Invalid JSON"),
        (FIRST.to_json()[:-40], "document: Invalid JSON"),
        (b"\xff" * 10, "document: Invalid JSON"),
        (b"[]", "document"),
        (b"{}", "version: Field required"),
        (_changed("version", to=1), "version: Input should be 2"),
        (_changed("unknown", to=2), "document: Extra inputs"),
        (_changed("trust_domain", to="other.example"), "to trust domain other.example, not to"),
        (_changed("trust_domain", to="Not/A/Domain"), "trust domain 'Not/A/Domain'"),
        (_changed("sequence", to=0), "sequence"),
        (_changed("sequence", to="1"), "sequence"),
        (_changed("longest_svid", to="soon"), "longest_svid"),
        (_changed("x509", 0, "since", to="2026-01-01T00:00:00"), "x509.0.since"),
        (_changed("x509", to=[]), "0 active x509"),
        (_changed("x509", 0, "state", to="broken"), "x509.0.state"),
        (_changed("x509", 0, "certificate", to="nonsense"), "certificate .* is damaged"),
        (_changed("x509", 0, "private_key", to="nonsense"), "not a private key"),
        (_changed("x509", 0, "private_key", to=STRANGE_KEY), "is not its certificate"),
        (_changed("x509", 0, to=NOT_SELF_SIGNED), "certificate .* is damaged"),
        (_changed("x509", 0, to=NO_AUTHORITY), "keyCertSign .*X509-SVID 4.3"),
        (
            _changed("x509", 0, "certificate", to=_pem(trust_domain=forge.TD)),
            "is not its certificate",
        ),
        (_changed("jwt", 0, "state", to="retired"), "0 active jwt"),
        (_changed("jwt", 0, "kid", to=""), "needs a key ID"),
        (_changed("jwt", 0, "private_key", to=None), "jwt.0.private_key"),
        (_changed("jwt", 0, "private_key", to=STRANGE_KEY[:90]), "not a private key"),
        (_changed("jwt", 0, "not_after", to="2026-01-01T00:00:00"), "jwt.0.not_after"),
        (_changed("jwt", 0, "not_after", to="2020-01-01T00:00:00Z"), "before it begins"),
    ],
)
def test_damage_is_refused_with_its_place_and_reason(data: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        AuthoritySet.parse(data, TD)


@pytest.mark.parametrize(
    "data",
    [
        FIRST.to_json()[:-40],
        _changed("x509", 0, "private_key", to=[STRANGE_KEY]),
        _changed("x509", 0, "private_key", to=STRANGE_KEY[:-40]),
        _changed("jwt", 0, "state", to=STRANGE_KEY),
        _changed(STRANGE_KEY[30:60], to=1),
    ],
)
def test_no_message_and_no_traceback_quotes_a_key(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"document|x509\.0|jwt\.0|private key") as caught:
        AuthoritySet.parse(data, TD)
    secrets = [line for line in data.decode().split("\\n") if len(line) > 40]
    shown = str(caught.value)
    assert caught.value.__suppress_context__
    assert caught.value.__cause__ is None
    assert not any(secret in shown for secret in secrets)
    assert STRANGE_KEY[30:60] not in shown


def test_a_set_of_another_trust_domain_is_refused() -> None:
    with pytest.raises(ValueError, match=r"to trust domain example\.org, not to other\.example"):
        AuthoritySet.parse(FIRST.to_json(), TrustDomain("other.example"))
