"""Trust bundles: printing and parsing are inverse, and damage is a ValueError."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from agent.spiffe.bundle import TrustBundle, parse_document, parse_jwks
from tests.vectors.pki.forge import TD, authority, rsa_key

if TYPE_CHECKING:
    from agent.spiffe.keys import PublicKey

KEYS: list[PublicKey] = [
    *(ec.generate_private_key(curve).public_key() for curve in (ec.SECP256R1(), ec.SECP384R1())),
    ec.generate_private_key(ec.SECP521R1()).public_key(),
    rsa_key(2048).public_key(),
]
AUTHORITIES = [
    authority(),
    authority(key=rsa_key(2048)),
    authority(ends=authority().not_valid_after_utc),
]

bundles = st.builds(
    TrustBundle,
    trust_domain=st.just(TD),
    x509_authorities=st.lists(st.sampled_from(AUTHORITIES), unique=True).map(tuple),
    jwt_authorities=st.dictionaries(st.text(min_size=1), st.sampled_from(KEYS)),
    sequence=st.integers(min_value=0, max_value=2**70),
    refresh_hint=st.integers(min_value=0, max_value=10**6).map(lambda s: timedelta(seconds=s)),
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


@given(bundles)
def test_parsing_a_document_gives_the_bundle_back(bundle: TrustBundle) -> None:
    assert parse_document(TD, bundle.document()) == bundle


@given(bundles)
def test_parsing_a_jwks_gives_the_keys_back(bundle: TrustBundle) -> None:
    assert parse_jwks(TD, bundle.jwks()) == bundle.jwt_authorities


@given(bundles, bundles)
def test_two_bundles_have_equal_documents_if_and_only_if_they_are_equal(
    a: TrustBundle, b: TrustBundle
) -> None:
    assert (a.document() == b.document()) == (a == b)


@given(bundles, st.data())
def test_a_key_with_an_arbitrary_member_is_read_or_refused(
    bundle: TrustBundle, data: st.DataObject
) -> None:
    """No content of a foreign bundle causes another error than ValueError."""
    document: dict[str, Any] = json.loads(bundle.document())
    for key in document["keys"]:
        key[data.draw(st.sampled_from(sorted(key)))] = data.draw(json_values)
    try:
        parsed = parse_document(TD, json.dumps(document).encode())
    except ValueError as error:
        message = str(error)
    else:
        assert set(parsed.x509_authorities) <= set(bundle.x509_authorities)
        return
    assert "example.org" in message


@given(st.binary() | json_values.map(lambda value: json.dumps(value).encode()))
def test_arbitrary_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"example\.org"):
        parse_document(TD, data)
