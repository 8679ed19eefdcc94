"""The rules for JWT-SVIDs: valid tokens pass, each broken rule is named."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from agent.spiffe import jwt_rules
from agent.spiffe.ids import SpiffeId, TrustDomain
from agent.spiffe.jwt_rules import MAX_TOKEN_CHARS, ValidatedJwtSvid, validate_jwt_svid
from agent.spiffe.lifetimes import LEEWAY
from agent.spiffe.x509_rules import ValidationError
from tests.vectors.pki.forge import ID, NOW, TD, bundle, rsa_key

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.spiffe.keys import PrivateKey


KEY = ec.generate_private_key(ec.SECP256R1())
KEY_384 = ec.generate_private_key(ec.SECP384R1())
FOREIGN_KEY = ec.generate_private_key(ec.SECP256R1())
KEY_521 = ec.generate_private_key(ec.SECP521R1())
BUNDLES = {TD: bundle(k1=KEY, k2=KEY_384, k3=KEY_521, r1=rsa_key(2048))}
EXP = int((NOW + timedelta(minutes=5)).timestamp())
CLAIMS = {"sub": str(ID), "aud": ["server"], "exp": EXP, "iat": EXP - 300}


def _token(
    claims: object = CLAIMS,
    *,
    key: PrivateKey | str = KEY,
    alg: str = "ES256",
    kid: object = "k1",
    **headers: Any,
) -> str:
    """Sign any claims; a header that is None is left out."""
    every = {"typ": "JWT", "kid": kid} | headers
    header = {name: value for name, value in every.items() if value is not None}
    # PyJWT writes no token without typ unless typ is false.
    header.setdefault("typ", "")
    payload = claims if isinstance(claims, bytes) else json.dumps(claims).encode()
    return jwt.PyJWS().encode(payload, key, algorithm=alg, headers=header)


def _with(**changes: Any) -> dict[str, Any]:
    return {name: value for name, value in (CLAIMS | changes).items() if value is not None}


def _handmade(header: object, claims: object = CLAIMS) -> str:
    """Sign a token with a header that PyJWT refuses to write."""
    parts = [json.dumps(part).encode() for part in (header, claims)]
    text = ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)
    signature = jwt.get_algorithm_by_name("ES256").sign(text.encode(), KEY)
    return f"{text}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


def _validate(token: str, now: datetime = NOW, audience: str = "server") -> ValidatedJwtSvid:
    return validate_jwt_svid(token, audience, BUNDLES, now)


def test_a_valid_token_yields_its_claims() -> None:
    svid = _validate(_token(_with(aud=["server", "other"], extra={"a": 1})))
    assert svid.spiffe_id == ID
    assert svid.expires_at == datetime.fromtimestamp(EXP, tz=UTC)
    assert svid.audience == ("server", "other")
    assert svid.claims == _with(aud=["server", "other"], extra={"a": 1})


def test_an_audience_that_is_a_string_is_returned_as_a_list() -> None:
    assert _validate(_token(_with(aud="server"))).claims["aud"] == ["server"]


@pytest.mark.parametrize(
    ("key", "kid", "alg"),
    [
        (KEY, "k1", "ES256"),
        (KEY_384, "k2", "ES384"),
        (KEY_521, "k3", "ES512"),
        *(
            (rsa_key(2048), "r1", f"{kind}{bits}")
            for kind in ("RS", "PS")
            for bits in (256, 384, 512)
        ),
    ],
)
def test_all_nine_algorithms_are_accepted(key: PrivateKey, kid: str, alg: str) -> None:
    assert _validate(_token(key=key, kid=kid, alg=alg)).spiffe_id == ID


@pytest.mark.parametrize("typ", ["JWT", "JOSE", None])
def test_typ_is_jwt_or_jose_or_absent(typ: str | None) -> None:
    assert _validate(_token(typ=typ)).spiffe_id == ID


def test_without_kid_all_keys_are_tried() -> None:
    assert _validate(_token(kid=None)).spiffe_id == ID
    assert _validate(_token(kid=None, key=KEY_384, alg="ES384")).spiffe_id == ID


def test_signature_of_a_known_token_is_not_verified_again(monkeypatch: pytest.MonkeyPatch) -> None:
    token = _token(_with(jti="known"))
    assert _validate(token).claims["jti"] == "known"
    monkeypatch.setattr(jwt_rules, "_is_signed_by", None)
    assert _validate(token).claims["jti"] == "known"


def test_known_token_is_refused_by_another_audience_time_or_bundle() -> None:
    token = _token(_with(jti="refused later"))
    _validate(token)
    with pytest.raises(ValidationError, match="another audience"):
        _validate(token, audience="other")
    with pytest.raises(ValidationError, match="has expired"):
        _validate(token, now=NOW + timedelta(days=1))
    for changed, reason in (
        (bundle(k2=KEY), "kid and alg"),
        (bundle(k1=FOREIGN_KEY), "signature"),
    ):
        with pytest.raises(ValidationError, match=reason):
            validate_jwt_svid(token, "server", {TD: changed}, NOW)
    assert _validate(token).spiffe_id == ID


def test_token_with_another_signature_is_not_known() -> None:
    token = _token(_with(jti="twice"))
    _validate(token)
    forged = token.rpartition(".")[0] + "." + _token(key=FOREIGN_KEY).rpartition(".")[2]
    with pytest.raises(ValidationError, match="signature"):
        _validate(forged)


def test_iat_has_no_effect() -> None:
    assert _validate(_token(_with(iat=EXP + 1000))).spiffe_id == ID
    assert _validate(_token(_with(iat="yesterday"))).spiffe_id == ID


def test_exp_and_nbf_may_have_fractions() -> None:
    assert _validate(_token(_with(exp=EXP + 0.5, nbf=EXP - 300.5))).expires_at.microsecond == 500000


def test_a_token_expires_after_the_leeway_and_not_before() -> None:
    end = datetime.fromtimestamp(EXP, tz=UTC) + LEEWAY
    assert _validate(_token(), now=end - timedelta(microseconds=1)).spiffe_id == ID
    with pytest.raises(ValidationError, match="has expired"):
        _validate(_token(), now=end)


def test_a_token_is_valid_from_nbf_less_the_leeway() -> None:
    token = _token(_with(nbf=EXP - 100))
    start = datetime.fromtimestamp(EXP - 100, tz=UTC) - LEEWAY
    assert _validate(token, now=start).spiffe_id == ID
    with pytest.raises(ValidationError, match="nbf"):
        _validate(token, now=start - timedelta(microseconds=1))


DEEP = b'{"a":' * 1900 + b"1" + b"}" * 1900
HMAC_WITH_PUBLIC_KEY = jwt.PyJWS().encode(
    json.dumps(CLAIMS).encode(),
    KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo).hex(),
    algorithm="HS256",
    headers={"kid": "k1"},
)
COMPACT = _token()


@pytest.mark.parametrize(
    ("reason", "token"),
    [
        ("compact", ""),
        ("compact", "a.b"),
        ("compact", "a.b.c.d"),
        ("compact", f"{COMPACT}="),
        ("compact", f"{COMPACT}\n"),
        ("compact", f" {COMPACT}"),
        ("compact", COMPACT.replace(".", "..", 1)),
        ("compact", json.dumps({"payload": "e30", "protected": "e30", "signature": "e30"})),
        ("compact", "é.é.é"),
        ("longer than", "a" * (MAX_TOKEN_CHARS + 1)),
        ("cannot be decoded", "a.b.c"),
        ("cannot be decoded", "e30a.e30.e30"),
        ("cannot be decoded", "W10.e30.e30"),
        ("cannot be decoded", _handmade({"alg": "ES256", "kid": 5})),
        ("cannot be decoded", _handmade({"alg": "ES256", "crit": ["new"], "new": 1})),
        ("JWT-SVID 2.1", _handmade({"kid": "k1"})),
        ("JWT-SVID 2.1", _handmade({"alg": ["ES256"], "kid": "k1"})),
        ("JWT-SVID 2.1", _handmade({"alg": "es256", "kid": "k1"})),
        (
            "JWT-SVID 2.1",
            jwt.encode(CLAIMS, "", algorithm="none", headers={"kid": "k1"})[:-1] + ".e30",
        ),
        ("JWT-SVID 2.1", HMAC_WITH_PUBLIC_KEY),
        ("JWT-SVID 2.3", _token(typ="at+jwt")),
        ("JWT-SVID 2.3", _token(typ="jwt")),
        ("JWT-SVID 2.3", _handmade({"alg": "ES256", "kid": "k1", "typ": None})),
        ("crit or b64", _handmade({"alg": "ES256", "kid": "k1", "crit": ["b64"], "b64": True})),
        ("crit or b64", _handmade({"alg": "ES256", "kid": "k1", "b64": True})),
        ("not valid JSON", _token(b"not json")),
        ("not valid JSON", _token(b"\xff\xfe")),
        ("not valid JSON", _token(DEEP)),
        ("not valid JSON", _token(b'{"exp": NaN}')),
        ("not valid JSON", _token(b'{"exp": 1e999}')),
        ("not valid JSON", _token(b'{"a": "\\ud800"}')),
        ("not a JSON object", _token([])),
        ("JWT-SVID 3.1", _token(_with(sub=None))),
        ("JWT-SVID 3.1", _token(_with(sub=5))),
        ("JWT-SVID 3.1", _token(_with(sub=[str(ID)]))),
        ("JWT-SVID 3.1", _token(_with(sub="payments"))),
        ("JWT-SVID 3.1", _token(_with(sub="spiffe://example.org"))),
        (
            "no trust bundle for trust domain other.example",
            _token(_with(sub="spiffe://other.example/payments/api")),
        ),
        ("kid and alg", _token(kid="k9")),
        ("kid and alg", _token(kid="")),
        ("kid and alg", _token(kid="r1")),
        ("kid and alg", _token(key=KEY_384, alg="ES384")),
        ("signature", _token(key=FOREIGN_KEY)),
        ("signature", _token(key=FOREIGN_KEY, kid=None)),
        ("JWT-SVID 3.2", _token(_with(aud=None))),
        ("JWT-SVID 3.2", _token(_with(aud=[]))),
        ("JWT-SVID 3.2", _token(_with(aud=["other"]))),
        ("JWT-SVID 3.2", _token(_with(aud="server2"))),
        ("JWT-SVID 3.2", _token(_with(aud=["server", 5]))),
        ("JWT-SVID 3.2", _token(_with(aud={"server": 1}))),
        ("has no exp", _token(_with(exp=None))),
        ("has expired", _token(_with(exp=EXP - 400))),
        ("not a number", _token(_with(exp=str(EXP)))),
        ("not a number", _token(_with(exp=True))),
        ("not a number", _token(_with(nbf="now"))),
        ("out of range", _token(_with(exp=10**300))),
        ("nbf", _token(_with(nbf=EXP - 1))),
    ],
)
def test_each_broken_token_is_refused_for_its_reason(reason: str, token: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        _validate(token)


def test_the_last_moment_of_the_calendar_is_still_a_date() -> None:
    end = int(datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC).timestamp())
    assert _validate(_token(_with(exp=end))).expires_at.year == 9999


def test_an_empty_audience_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"JWT-SVID 3.2"):
        _validate(_token(_with(aud=["", "server"])), audience="")


def test_a_token_is_validated_with_the_bundle_of_its_own_trust_domain() -> None:
    other = TrustDomain("other.example")
    bundles = {TD: bundle(k1=FOREIGN_KEY), other: bundle(trust_domain=other, k1=KEY)}
    with pytest.raises(ValidationError, match="signature"):
        validate_jwt_svid(_token(), "server", bundles, NOW)


def test_a_bundle_without_jwt_keys_validates_nothing() -> None:
    with pytest.raises(ValidationError, match="kid and alg"):
        validate_jwt_svid(_token(kid=None), "server", {TD: bundle()}, NOW)


@pytest.mark.parametrize(
    "make",
    [
        lambda: _token(key=FOREIGN_KEY),
        lambda: _token(_with(aud=["other"])),
        lambda: _token(_with(sub="spiffe://Example.org/SECRET-PART")),
    ],
)
def test_an_error_is_short_and_quotes_nothing_of_the_token(make: Callable[[], str]) -> None:
    token = make()
    with pytest.raises(ValidationError) as caught:
        _validate(token)
    assert len(str(caught.value)) < 100
    assert "SECRET" not in str(caught.value)
    assert not any(part in str(caught.value) for part in token.split("."))


def test_a_spiffe_id_of_another_path_is_another_identity() -> None:
    token = _token(_with(sub="spiffe://example.org/x"))
    assert _validate(token).spiffe_id == SpiffeId(TD, "/x")
