"""JWT-SVID: vouchd as a validator of tokens, and the JWKs that it writes and reads."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from agent.spiffe.bundle import parse_document
from agent.spiffe.jwt_rules import validate_jwt_svid
from agent.spiffe.x509_rules import ValidationError
from tests.agent.conformance.encoding import base64url, encode
from tests.vectors.pki import forge
from tests.vectors.pki.forge import ID, NOW, TD

KEY = ec.generate_private_key(ec.SECP256R1())
BUNDLES = {TD: forge.bundle(a=KEY)}
AUDIENCE = "service"
CLAIMS: dict[str, Any] = {
    "sub": str(ID),
    "aud": [AUDIENCE],
    "exp": int((NOW + timedelta(minutes=5)).timestamp()),
}


def _token(*without: str, header: dict[str, Any] | None = None, **claims: Any) -> str:
    """Return a token with a valid signature and with these claims in place of valid ones."""
    kept = {name: value for name, value in (CLAIMS | claims).items() if name not in without}
    return jwt.encode(kept, KEY, "ES256", {"kid": "a"} | (header or {}))


def _accepts(token: str) -> None:
    assert validate_jwt_svid(token, AUDIENCE, BUNDLES, NOW).spiffe_id == ID


def _refuses(token: str, reason: str | None = None) -> None:
    with pytest.raises(ValidationError, match=reason):
        validate_jwt_svid(token, AUDIENCE, BUNDLES, NOW)


def _exp(seconds: float) -> float:
    return (NOW + timedelta(seconds=seconds)).timestamp()


@pytest.fixture(autouse=True)
def the_unchanged_token_is_accepted() -> None:
    """A refusal then has one cause: the change."""
    _accepts(_token())


def test_JW_05_any_other_algorithm_is_refused() -> None:
    for name in ("HS256", "HS384", "HS512", "none", "EdDSA", "ES256K", "es256", "", None, 7):
        _refuses(f"{encode({'alg': name, 'kid': 'a'})}.{encode(CLAIMS)}.{base64url(bytes(64))}")
    edwards = ed25519.Ed25519PrivateKey.generate()
    _refuses(jwt.encode(CLAIMS, edwards, "EdDSA", {"kid": "a"}))


def test_JW_07_any_other_type_is_refused() -> None:
    _accepts(_token(header={"typ": "JWT"}))
    _accepts(_token(header={"typ": "JOSE"}))
    for name in ("wit+jwt", "at+jwt", "jwt"):
        _refuses(_token(header={"typ": name}))


def test_JW_10_a_token_without_audience_or_for_another_is_refused() -> None:
    _accepts(_token(aud=AUDIENCE))
    _accepts(_token(aud=["other", AUDIENCE]))
    _refuses(_token("aud"))
    for audience in ([], ["other"], "other", AUDIENCE[:-1], f"{AUDIENCE}s", [AUDIENCE.upper()]):
        _refuses(_token(aud=audience))


def test_JW_13_a_token_without_expiry_is_refused() -> None:
    _refuses(_token("exp"))


def test_JW_14_the_algorithm_is_checked_first() -> None:
    broken = f"{encode({'alg': 'HS256'})}.{base64url(b'not JSON')}.{base64url(b'x')}"
    _refuses(broken, reason="alg")


def test_JW_15_audience_and_expiry_of_other_forms_are_refused() -> None:
    for audience in (1, None, {AUDIENCE: 1}, [1], [[AUDIENCE]], [AUDIENCE, 1]):
        _refuses(_token(aud=audience))
    for expiry in (str(int(_exp(60))), None, True, [_exp(60)], 1e300):
        # PyJWT refuses to write these.
        text = _token()
        header, _, _ = text.split(".")
        signed = f"{header}.{encode(CLAIMS | {'exp': expiry})}"
        signature = jwt.get_algorithm_by_name("ES256").sign(signed.encode(), KEY)
        _refuses(f"{signed}.{base64url(signature)}")


def test_JW_17_an_expired_token_is_refused() -> None:
    _accepts(_token(exp=_exp(1)))
    _refuses(_token(exp=_exp(-3600)))
    _refuses(_token(exp=_exp(-10)))


# --- written documents ----------------------------------------------------------------------------


def _written() -> list[dict[str, Any]]:
    """Return the JWT keys of a bundle document that also has a certificate."""
    bundle = forge.bundle(forge.authority(), first=KEY, second=forge.LEAF_KEY)
    keys: list[dict[str, Any]] = json.loads(bundle.document())["keys"]
    return [key for key in keys if key["use"] != "x509-svid"]


def test_JW_21_there_is_one_jwk_for_each_signing_key() -> None:
    found = [jwt.PyJWK(key, algorithm="ES256").key for key in _written()]
    assert found == [KEY.public_key(), forge.LEAF_KEY.public_key()]


def test_JW_22_the_use_is_jwt_svid() -> None:
    assert [key["use"] for key in _written()] == ["jwt-svid"] * 2


def test_JW_23_each_key_has_its_key_id() -> None:
    assert [key["kid"] for key in _written()] == ["first", "second"]


# --- read documents -------------------------------------------------------------------------------


def test_JW_24_keys_of_any_other_use_validate_nothing() -> None:
    entry = _written()[0] | {"kid": "a"}
    for use in ("x509-svid", "wit-svid", "sig", "JWT-SVID", ""):
        document = json.dumps({"keys": [entry | {"use": use}], "spiffe_sequence": 1})
        bundle = parse_document(TD, document.encode())
        assert not bundle.jwt_authorities
        with pytest.raises(ValidationError):
            validate_jwt_svid(_token(), AUDIENCE, {TD: bundle}, NOW)
