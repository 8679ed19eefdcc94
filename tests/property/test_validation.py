"""Validation of SVIDs: an altered token or certificate is refused, with a ValidationError."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import example, given
from hypothesis import strategies as st

from agent.authority.jwt_issuer import JwtIssuer, JwtSvidRequest
from agent.spiffe.jwt_rules import validate_jwt_svid
from agent.spiffe.x509_rules import ValidationError, validate_x509_svid
from tests.vectors.pki.forge import CA_KEY, DAY, ID, NOW, TD, authority, bundle, leaf

ISSUER = JwtIssuer("k", CA_KEY, NOW + DAY, TD)
REQUEST = JwtSvidRequest(spiffe_id=ID, audience=("server",), ttl=timedelta(minutes=5))
TOKEN = ISSUER.issue(ISSUER.prepare(REQUEST, NOW)).token
LEAF = leaf().public_bytes(Encoding.DER)
BUNDLE = bundle(authority(), k=CA_KEY)
# In production the library only warns, and the certificate is checked all the same.
ODD_SERIAL = "ignore:Parsed a serial number:cryptography.utils.CryptographyDeprecationWarning"

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
# Half of the drawn texts have the form of a token.
token_texts = st.text() | st.lists(
    st.text("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_", min_size=1),
    min_size=3,
    max_size=3,
).map(".".join)


def _refused(token: str) -> bool:
    try:
        validate_jwt_svid(token, "server", {TD: BUNDLE}, NOW)
    except ValidationError:
        return True
    return False


def test_the_token_that_is_mutated_below_is_valid() -> None:
    assert not _refused(TOKEN)


@given(token_texts)
def test_arbitrary_text_is_refused(text: str) -> None:
    assert _refused(text)


def test_a_token_with_any_bit_flipped_is_refused() -> None:
    """Flip each of the seven bits of each character."""
    for index, character in enumerate(TOKEN):
        for bit in range(7):
            mutant = chr(ord(character) ^ (1 << bit))
            assert _refused(TOKEN[:index] + mutant + TOKEN[index + 1 :]), (index, mutant)


@given(st.integers(0, len(TOKEN) - 1), st.characters())
def test_a_token_with_any_character_replaced_is_refused(index: int, character: str) -> None:
    if character != TOKEN[index]:
        assert _refused(TOKEN[:index] + character + TOKEN[index + 1 :])


@given(st.integers(0, len(TOKEN)), st.text(min_size=1, max_size=3))
def test_a_token_with_anything_inserted_is_refused(index: int, text: str) -> None:
    assert _refused(TOKEN[:index] + text + TOKEN[index:])


@given(
    st.dictionaries(st.sampled_from(["alg", "kid", "typ", "crit", "b64", "cty"]), json_values),
    st.dictionaries(st.sampled_from(["sub", "aud", "exp", "nbf", "iat", "x"]), json_values),
)
@example({"alg": "ES256"}, {"sub": str(ID), "aud": ["server"], "exp": 10**18})
def test_arbitrary_headers_and_claims_raise_nothing_but_validation_errors(
    header: dict[str, Any], claims: dict[str, Any]
) -> None:
    """The signature is valid, so the checks of headers and claims run."""
    good = {"sub": str(ID), "aud": ["server"], "exp": int(NOW.timestamp()) + 60}
    try:
        payload = json.dumps(good | claims).encode()
        token = jwt.PyJWS().encode(payload, CA_KEY, algorithm="ES256", headers={"kid": "k"})
    except ValueError:
        return
    head = json.dumps({"alg": "ES256", "kid": "k"} | header).encode()
    forged = jwt.utils.base64url_encode(head).decode() + token[token.index(".") :]
    assert _refused(forged)
    _refused(token)


def _loaded(der: bytes) -> x509.Certificate | None:
    try:
        return x509.load_der_x509_certificate(der)
    except (ValueError, x509.InvalidVersion):
        return None


def _signed_parts(certificate: x509.Certificate) -> tuple[bytes, bytes]:
    return certificate.tbs_certificate_bytes, certificate.signature


@pytest.mark.filterwarnings(ODD_SERIAL)
def test_a_certificate_with_any_bit_of_its_content_flipped_is_refused() -> None:
    """Every bit, if the result still is a certificate.

    Bits that are neither signed nor part of the signature are left out: DER can count zero bits at
    the end of a signature as unused, so that the same certificate has a second encoding.
    """
    genuine = _signed_parts(x509.load_der_x509_certificate(LEAF))
    checked = 0
    for position in range(len(LEAF) * 8):
        mutant = bytearray(LEAF)
        mutant[position // 8] ^= 1 << position % 8
        certificate = _loaded(bytes(mutant))
        if certificate is None or _signed_parts(certificate) == genuine:
            continue
        checked += 1
        with pytest.raises(ValidationError):
            validate_x509_svid([certificate], BUNDLE, NOW)
    assert checked > len(LEAF)
