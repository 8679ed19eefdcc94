from __future__ import annotations

import base64
import json
from dataclasses import FrozenInstanceError, replace
from datetime import timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding

from agent.spiffe.bundle import TrustBundle, parse_document, parse_jwks
from tests.vectors.pki.forge import CA_KEY, LEAF_KEY, TD, authority, bundle, rsa_key

OTHER_KEY = ec.generate_private_key(ec.SECP384R1())
CA = authority()
OTHER_CA = authority(key=OTHER_KEY)
BUNDLE = bundle(CA, OTHER_CA, zeta=LEAF_KEY, alpha=OTHER_KEY, rho=rsa_key(2048))
X509_KEY, _, ALPHA, RHO, ZETA = json.loads(BUNDLE.document())["keys"]
JWKS_ALPHA = json.loads(BUNDLE.jwks())["keys"][0]


def _document(*jwks: Any, **members: Any) -> bytes:
    return json.dumps({"keys": list(jwks), **members}).encode()


def _der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)


# --- published forms ---------------------------------------------------------------------------


def test_x509_der_is_the_concatenated_certificates() -> None:
    assert BUNDLE.x509_der() == _der(CA) + _der(OTHER_CA)


def test_workload_jwks_has_standard_keys_without_use_sorted_by_kid() -> None:
    jwks = json.loads(BUNDLE.jwks())
    assert set(jwks) == {"keys"}
    assert [key["kid"] for key in jwks["keys"]] == ["alpha", "rho", "zeta"]
    assert set(jwks["keys"][0]) == {"kty", "crv", "x", "y", "kid"}
    assert set(jwks["keys"][1]) == {"kty", "n", "e", "kid"}


def test_document_names_the_use_of_every_key() -> None:
    document = json.loads(BUNDLE.document())
    assert set(document) == {"keys", "spiffe_sequence", "spiffe_refresh_hint"}
    assert [key["use"] for key in document["keys"]] == ["x509-svid"] * 2 + ["jwt-svid"] * 3
    assert document["spiffe_sequence"] == 1
    assert document["spiffe_refresh_hint"] == 300


def test_x509_keys_of_the_document_have_one_x5c_and_no_kid() -> None:
    assert set(X509_KEY) == {"kty", "crv", "x", "y", "use", "x5c"}
    assert [base64.b64decode(value, validate=True) for value in X509_KEY["x5c"]] == [_der(CA)]


def test_jwt_keys_of_the_document_have_a_kid() -> None:
    assert set(ALPHA) == {"kty", "crv", "x", "y", "use", "kid"}
    assert set(RHO) == {"kty", "n", "e", "use", "kid"}


def test_the_order_of_the_keys_given_has_no_effect() -> None:
    backwards = dict(reversed(list(BUNDLE.jwt_authorities.items())))
    again = replace(BUNDLE, jwt_authorities=backwards)
    assert (again.jwks(), again.document()) == (BUNDLE.jwks(), BUNDLE.document())


def test_a_bundle_is_immutable() -> None:
    source = {"a": LEAF_KEY.public_key()}
    made = replace(BUNDLE, jwt_authorities=source)
    source["b"] = LEAF_KEY.public_key()
    assert list(made.jwt_authorities) == ["a"]
    with pytest.raises(TypeError):
        made.jwt_authorities["c"] = LEAF_KEY.public_key()  # type: ignore[index]
    with pytest.raises(FrozenInstanceError):
        made.sequence = 2  # type: ignore[misc]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"sequence": -1}, "negative"),
        ({"refresh_hint": timedelta(seconds=-1)}, "Trust Domain and Bundle 4.1.2"),
        ({"refresh_hint": timedelta(seconds=1.5)}, "Trust Domain and Bundle 4.1.2"),
        ({"jwt_authorities": {"": LEAF_KEY.public_key()}}, "JWT-SVID 6.1"),
    ],
)
def test_a_bundle_that_breaks_the_standard_cannot_be_made(
    changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        replace(BUNDLE, **changes)


def test_an_authority_with_an_unsupported_key_is_not_published() -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    certificate = (
        x509.CertificateBuilder(CA.issuer, CA.subject, key.public_key(), 1)
        .not_valid_before(CA.not_valid_before_utc)
        .not_valid_after(CA.not_valid_after_utc)
        .sign(key, None)
    )
    with pytest.raises(ValueError, match="neither EC nor RSA"):
        bundle(certificate).document()


# --- parsing ----------------------------------------------------------------------------------


def test_a_document_reads_back_as_the_same_bundle() -> None:
    assert parse_document(TD, BUNDLE.document()) == BUNDLE


def test_a_jwks_reads_back_as_the_same_keys() -> None:
    assert parse_jwks(TD, BUNDLE.jwks()) == BUNDLE.jwt_authorities


def test_a_jwks_gives_no_keys_of_other_uses() -> None:
    wit = JWKS_ALPHA | {"use": "wit-svid"}
    assert parse_jwks(TD, _document(wit, X509_KEY)) == {}
    assert list(parse_jwks(TD, _document(JWKS_ALPHA | {"use": "jwt-svid"}))) == ["alpha"]


def test_a_document_without_sequence_and_hint_has_the_defaults() -> None:
    parsed = parse_document(TD, _document())
    assert (parsed.sequence, parsed.refresh_hint) == (0, timedelta(minutes=5))


def test_a_sequence_of_64_bits_is_read() -> None:
    assert parse_document(TD, _document(spiffe_sequence=2**63)).sequence == 2**63


def _key_with(key: dict[str, Any], **members: Any) -> dict[str, Any]:
    return {name: value for name, value in (key | members).items() if value is not None}


@pytest.mark.parametrize(
    "ignored",
    [
        _key_with(ALPHA, use=None),
        _key_with(ALPHA, use="JWT-SVID"),
        _key_with(ALPHA, use="wit-svid"),
        _key_with(ALPHA, use=["jwt-svid"]),
        _key_with(ALPHA, kty=None),
        _key_with(ALPHA, kty="AKP"),
        _key_with(ALPHA, kty=["EC"]),
        _key_with(ALPHA, kty="oct", k="c2VjcmV0"),
        _key_with(ALPHA, crv="secp256k1"),
        _key_with(ALPHA, crv=None),
        _key_with(X509_KEY, x5c=None),
        _key_with(X509_KEY, x5c=[]),
        _key_with(X509_KEY, x5c=None, x=None),
        _key_with(X509_KEY, kty="OKP"),
    ],
)
def test_keys_of_unknown_type_or_use_are_ignored_and_the_rest_kept(ignored: Any) -> None:
    parsed = parse_document(TD, _document(ignored, ZETA))
    assert parsed.x509_authorities == ()
    assert list(parsed.jwt_authorities) == ["zeta"]


def test_unknown_members_are_ignored() -> None:
    data = _document(_key_with(ALPHA, alg="ES384", new="thing"), more={"a": 1})
    assert list(parse_document(TD, data).jwt_authorities) == ["alpha"]


def test_only_the_first_x5c_value_counts() -> None:
    key = _key_with(X509_KEY, x5c=[*X509_KEY["x5c"], "not base64"])
    assert parse_document(TD, _document(key)).x509_authorities == (CA,)


def test_a_certificate_that_is_listed_twice_counts_once() -> None:
    assert parse_document(TD, _document(X509_KEY, X509_KEY)).x509_authorities == (CA,)


def test_a_private_key_in_a_document_is_ignored() -> None:
    leaked = _key_with(ALPHA, d="AAAA")
    assert parse_document(TD, _document(leaked)).jwt_authorities["alpha"] == OTHER_KEY.public_key()


X5C = X509_KEY["x5c"][0]
URL_SAFE = base64.urlsafe_b64encode(base64.b64decode(X5C)).decode()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "document: Invalid JSON"),
        (b"[]", "document"),
        (b'{"keys": ' + b"[" * 5000, "document"),
        (b"{}", "keys: Field required"),
        (b'{"keys": null}', "keys"),
        (b'{"keys": [7]}', "keys.0"),
        (_document(spiffe_sequence="7"), "spiffe_sequence"),
        (_document(spiffe_sequence=7.0), "spiffe_sequence"),
        (_document(spiffe_sequence=-1), "spiffe_sequence"),
        (_document(spiffe_refresh_hint=1.5), "spiffe_refresh_hint"),
        (_document(spiffe_refresh_hint=10**20), "spiffe_refresh_hint"),
        (_document(_key_with(ALPHA, kid=None)), "no key ID"),
        (_document(_key_with(ALPHA, kid="")), "no key ID"),
        (_document(_key_with(ALPHA, kid=5)), "no key ID"),
        (_document(_key_with(ALPHA, kid="zeta"), ZETA), "two JWT authorities"),
        (_document(_key_with(ALPHA, x=None)), "type EC cannot be read"),
        (_document(_key_with(ALPHA, x=5)), "type EC cannot be read"),
        (_document(_key_with(ALPHA, x=ALPHA["y"])), "type EC cannot be read"),
        (_document(_key_with(RHO, n=None)), "type RSA cannot be read"),
        (_document(_key_with(RHO, e=["AQAB"])), "type RSA cannot be read"),
        (_document(_key_with(X509_KEY, x5c="MII")), "x5c"),
        (_document(_key_with(X509_KEY, x5c={"a": 1})), "x5c"),
        (_document(_key_with(X509_KEY, x5c=[7])), "x5c"),
        (_document(_key_with(X509_KEY, x5c=[X5C[:-8]])), "x5c"),
        (_document(_key_with(X509_KEY, x5c=[URL_SAFE])), "x5c"),
        (_document(_key_with(X509_KEY, x5c=[f"{X5C[:64]}\n{X5C[64:]}"])), "x5c"),
        (_document(_key_with(ZETA, use="x509-svid", x5c=[X5C])), "another key"),
    ],
)
def test_damage_is_refused_with_its_trust_domain_and_place(data: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=f"of example.org: .*{reason}"):
        parse_document(TD, data)


def test_a_weak_rsa_key_is_refused() -> None:
    numbers = rsa_key(1024).public_key().public_numbers()
    n = base64.urlsafe_b64encode(numbers.n.to_bytes(128, "big")).rstrip(b"=").decode()
    with pytest.raises(ValueError, match="1024 bits"):
        parse_document(TD, _document(_key_with(RHO, n=n)))


@pytest.mark.parametrize("data", [b"nonsense", _document(_key_with(JWKS_ALPHA, kid=None))])
def test_a_damaged_jwks_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"bundle of example\.org"):
        parse_jwks(TD, data)


def test_the_same_key_under_the_same_id_twice_is_one_key() -> None:
    assert list(parse_jwks(TD, _document(JWKS_ALPHA, JWKS_ALPHA))) == ["alpha"]


def test_an_empty_bundle_is_legal() -> None:
    empty: TrustBundle = parse_document(TD, _document())
    assert (empty.x509_der(), empty.jwks()) == (b"", b'{"keys":[]}')


def test_an_x509_authority_key_does_not_become_a_jwt_authority() -> None:
    parsed = parse_document(TD, bundle(CA).document())
    assert parsed.jwt_authorities == {}
    assert parsed.x509_authorities[0].public_key() == CA_KEY.public_key()
