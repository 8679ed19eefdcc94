from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from agent.authority.issuance import IssuanceError
from agent.authority.jwt_issuer import JwtIssuer, JwtSvid, JwtSvidRequest, new_kid
from agent.spiffe.ids import SpiffeId, TrustDomain
from agent.spiffe.jwt_rules import validate_jwt_svid
from tests.vectors.pki import forge
from tests.vectors.pki.forge import DAY, ID, TD, bundle, rsa_key

if TYPE_CHECKING:
    from agent.spiffe.keys import PrivateKey

NOW = forge.NOW + timedelta(microseconds=700_000)
WHOLE_NOW = forge.NOW
KEY = ec.generate_private_key(ec.SECP256R1())
STRANGE_ID = SpiffeId(TrustDomain("other.example"), "/x")
JWT_ISSUER = JwtIssuer("key-1", KEY, NOW + DAY, TD)
JWT_REQUEST = JwtSvidRequest(spiffe_id=ID, audience=("server", "other"), ttl=timedelta(minutes=5))


def _issue_jwt(**changes: Any) -> JwtSvid:
    return JWT_ISSUER.issue(JWT_ISSUER.prepare(replace(JWT_REQUEST, **changes), NOW))


def _payload(token: str) -> dict[str, Any]:
    return jwt.decode(token, options={"verify_signature": False})


def test_a_token_has_the_header_and_claims_of_the_profile() -> None:
    svid = _issue_jwt()
    start = int(WHOLE_NOW.timestamp())
    assert jwt.get_unverified_header(svid.token) == {"alg": "ES256", "kid": "key-1", "typ": "JWT"}
    assert _payload(svid.token) == {
        "sub": str(ID),
        "aud": ["server", "other"],
        "exp": start + 300,
        "iat": start,
    }


def test_an_issued_svid_has_the_times_and_kid_of_its_token() -> None:
    svid = _issue_jwt()
    assert (svid.spiffe_id, svid.kid) == (ID, "key-1")
    assert svid.issued_at == WHOLE_NOW
    assert svid.expires_at == WHOLE_NOW + timedelta(minutes=5)


@pytest.mark.parametrize(
    ("key", "alg"),
    [
        (KEY, "ES256"),
        (ec.generate_private_key(ec.SECP384R1()), "ES384"),
        (rsa_key(2048), "RS256"),
        (rsa_key(4096), "RS256"),
    ],
)
def test_each_kind_of_key_issues_valid_tokens(key: PrivateKey, alg: str) -> None:
    issuer = JwtIssuer("k", key, NOW + DAY, TD)
    token = issuer.issue(issuer.prepare(JWT_REQUEST, NOW)).token
    assert jwt.get_unverified_header(token)["alg"] == alg
    assert validate_jwt_svid(token, "other", {TD: bundle(k=key)}, NOW).spiffe_id == ID


def test_audiences_keep_their_order_without_repetitions() -> None:
    token = _issue_jwt(audience=("b", "a", "b", "c", "a")).token
    assert _payload(token)["aud"] == ["b", "a", "c"]


def test_a_single_audience_is_a_list() -> None:
    assert _payload(_issue_jwt(audience=("a",)).token)["aud"] == ["a"]


def test_a_token_does_not_outlive_its_authority_or_its_limit() -> None:
    assert _issue_jwt(ttl=2 * DAY).expires_at == WHOLE_NOW + DAY
    limit = WHOLE_NOW + timedelta(seconds=20)
    assert _issue_jwt(not_after_limit=limit).expires_at == limit


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"spiffe_id": STRANGE_ID}, "SPIFFE-ID 4.1"),
        ({"audience": ()}, "JWT-SVID 3.2"),
        ({"audience": ("a", "")}, "JWT-SVID 3.2"),
        ({"audience": (" ",)}, "JWT-SVID 3.2"),
        ({"audience": ("\ud800",)}, "not valid JSON"),
        ({"audience": ("a" * 20_000,)}, "longer than"),
        ({"ttl": timedelta(seconds=1)}, "less than 2 seconds"),
        ({"not_after_limit": WHOLE_NOW}, "less than 2 seconds"),
    ],
)
def test_a_request_that_breaks_the_profile_is_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(IssuanceError, match=reason):
        JWT_ISSUER.prepare(replace(JWT_REQUEST, **changes), NOW)


def test_a_prepared_token_is_issued_once_by_its_issuer() -> None:
    prepared = JWT_ISSUER.prepare(JWT_REQUEST, NOW)
    with pytest.raises(IssuanceError, match="another issuer"):
        JwtIssuer("key-1", KEY, NOW + DAY, TD).issue(prepared)
    JWT_ISSUER.issue(prepared)
    with pytest.raises(IssuanceError, match="issued already"):
        JWT_ISSUER.issue(prepared)


def test_a_token_with_another_header_is_refused_before_signing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    issuer = JwtIssuer("key-1", KEY, NOW + DAY, TD)
    encode = jwt.encode

    def faulty(claims: Any, key: Any, headers: Any, algorithm: str) -> str:
        return encode(claims, key, headers=headers | {"cty": "x"}, algorithm=algorithm)

    monkeypatch.setattr(jwt, "encode", faulty)
    with pytest.raises(IssuanceError, match="differs from its template"):
        issuer.prepare(JWT_REQUEST, NOW)


def test_a_token_with_other_claims_is_refused_before_signing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encode = jwt.encode

    def faulty(claims: Any, *arguments: Any, **others: Any) -> str:
        return encode(claims | {"admin": True}, *arguments, **others)

    monkeypatch.setattr(jwt, "encode", faulty)
    with pytest.raises(IssuanceError, match="differs from its template"):
        JWT_ISSUER.prepare(JWT_REQUEST, NOW)


def test_a_token_that_differs_from_its_draft_is_not_handed_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prepared = JWT_ISSUER.prepare(JWT_REQUEST, NOW)
    encode = jwt.encode

    def faulty(claims: Any, *arguments: Any, **others: Any) -> str:
        return encode(claims | {"exp": claims["exp"] + 1}, *arguments, **others)

    monkeypatch.setattr(jwt, "encode", faulty)
    with pytest.raises(IssuanceError, match="differs from the draft"):
        JWT_ISSUER.issue(prepared)


def test_key_ids_are_128_random_bits() -> None:
    kids = {new_kid() for _ in range(20)}
    assert len(kids) == 20
    assert all(len(bytes.fromhex(kid)) == 16 for kid in kids)
