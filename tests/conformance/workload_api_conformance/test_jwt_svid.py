"""JWT-SVID: issued tokens, and tokens that ValidateJWTSVID has to refuse."""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
import json
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from .documents import JWS_ALGORITHMS, Token, base64url, encode
from .expectations import AUDIENCE, Validator
from .pb import workload_pb2 as pb
from .wire import INVALID_ARGUMENT


def test_JW_01_a_token_is_not_in_json_serialization(tokens: list[Token]) -> None:
    for token in tokens:
        with pytest.raises(json.JSONDecodeError):
            json.loads(token.text)


def test_JW_02_the_header_has_alg_kid_and_typ_only(tokens: list[Token]) -> None:
    assert all(token.header.keys() <= {"alg", "kid", "typ"} for token in tokens)


def test_JW_03_a_token_is_signed_and_an_encrypted_one_is_refused(
    tokens: list[Token], validate: Validator
) -> None:
    assert not any("enc" in token.header for token in tokens)
    encrypted = {"alg": "dir", "enc": "A256GCM"}
    jwe = ".".join([encode(encrypted), "", *(base64url(b"x" * 16) for _ in range(3))])
    assert validate.status(jwe) == INVALID_ARGUMENT


def test_JW_04_the_algorithm_is_one_of_the_nine(tokens: list[Token]) -> None:
    assert {token.header["alg"] for token in tokens} <= JWS_ALGORITHMS


def test_JW_05_a_token_without_signature_or_with_a_shared_secret_is_refused(
    token: Token, validate: Validator, jwks: dict[str, Any]
) -> None:
    unsigned = [encode(token.header | {"alg": "none"}), token.parts[1]]
    assert validate.status(".".join([*unsigned, ""])) == INVALID_ARGUMENT
    assert validate.status(".".join([*unsigned, token.parts[2]])) == INVALID_ARGUMENT
    for secret in _public_keys_as_secrets(jwks):
        signed = f"{encode(token.header | {'alg': 'HS256'})}.{token.parts[1]}"
        mac = hmac.digest(secret, signed.encode(), hashlib.sha256)
        assert validate.status(f"{signed}.{base64url(mac)}") == INVALID_ARGUMENT


def _public_keys_as_secrets(jwks: dict[str, Any]) -> list[bytes]:
    """Return the forms in which a careless validator takes a public key for an HMAC secret."""
    keys = [jwt.PyJWK(key, algorithm=_algorithm(key)).key for key in jwks["keys"]]
    kinds = ((Encoding.PEM, b""), (Encoding.PEM, b"\n"), (Encoding.DER, b""))
    return [
        key.public_bytes(encoding, PublicFormat.SubjectPublicKeyInfo).rstrip(b"\n") + end
        for key in keys
        for encoding, end in kinds
    ]


def _algorithm(key: dict[str, Any]) -> str:
    curves = {"P-256": "ES256", "P-384": "ES384", "P-521": "ES512"}
    return curves.get(key.get("crv", ""), "RS256")


def test_JW_07_the_type_is_jwt_or_jose_if_there_is_one(tokens: list[Token]) -> None:
    assert {token.header.get("typ", "JWT") for token in tokens} <= {"JWT", "JOSE"}


def test_JW_08_the_subject_is_the_spiffe_id(jwt_response: pb.JWTSVIDResponse) -> None:
    assert jwt_response.svids
    for svid in jwt_response.svids:
        assert Token(svid.svid).claims["sub"] == svid.spiffe_id


def test_JW_09_there_is_an_audience(tokens: list[Token]) -> None:
    assert all(token.audience for token in tokens)


def test_JW_10_a_token_for_another_audience_is_refused(token: Token, validate: Validator) -> None:
    others = ("spiffe://conformance.example", AUDIENCE[0].upper(), f"{AUDIENCE[0]}/", "*")
    for other in others:
        assert validate.status(token.text, other) == INVALID_ARGUMENT


def test_JW_12_there_is_an_expiry(tokens: list[Token]) -> None:
    assert all("exp" in token.claims for token in tokens)


def test_JW_15_audience_and_expiry_have_the_forms_of_rfc_7519(tokens: list[Token]) -> None:
    now = dt.datetime.now(dt.UTC).timestamp()  # noqa: TID251 - exp is wall-clock time
    for token in tokens:
        expiry = token.claims["exp"]
        assert type(expiry) in {int, float}
        assert expiry > now
        assert all(isinstance(value, str) for value in token.audience)


def test_JW_16_a_token_is_in_compact_serialization(tokens: list[Token]) -> None:
    alphabet = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")
    for token in tokens:
        assert len(token.parts) == 3
        assert all(part and set(part) <= alphabet for part in token.parts)


def test_JW_23_keys_have_key_ids_and_tokens_name_them(
    tokens: list[Token], jwks: dict[str, Any]
) -> None:
    ids = [key["kid"] for key in jwks["keys"]]
    assert all(isinstance(kid, str) and kid for kid in ids)
    assert len(set(ids)) == len(ids)
    assert {token.header["kid"] for token in tokens} <= set(ids)
