"""X509-SVID: vouchd as a validator of certificates, and the bundle documents it handles."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from agent.spiffe.bundle import TrustBundle, parse_document
from agent.spiffe.x509_rules import ValidationError, validate_x509_svid
from tests.vectors.pki import forge
from tests.vectors.pki.forge import DAY, ID, NOW, TD, authority, leaf, names, usage

AUTHORITY = authority()
OTHER_KEY = ec.generate_private_key(ec.SECP256R1())
OTHER_AUTHORITY = authority(key=OTHER_KEY)
BUNDLE = forge.bundle(AUTHORITY)


def _accepts(*chain: x509.Certificate) -> None:
    assert validate_x509_svid(chain, BUNDLE, NOW) == ID


def _refuses(*chain: x509.Certificate, bundle: TrustBundle = BUNDLE) -> None:
    with pytest.raises(ValidationError):
        validate_x509_svid(chain, bundle, NOW)


@pytest.fixture(autouse=True)
def the_unchanged_leaf_is_accepted() -> None:
    """A refusal then has one cause: the change."""
    _accepts(leaf())


def test_X5_02_a_second_uri_is_refused() -> None:
    for other in (f"{ID}/b", "https://example.org/a", "urn:a:b", str(ID)):
        _refuses(leaf(san=(names(str(ID), other), False)))
        _refuses(leaf(san=(names(other, str(ID)), False)))


def test_X5_03_other_kinds_of_names_are_tolerated() -> None:
    _accepts(leaf(san=(names(str(ID), dns=("a.example", "*.b.example")), False)))


def test_X5_04_only_a_leaf_authenticates_a_peer() -> None:
    _refuses(AUTHORITY)
    _refuses(authority(signer=forge.CA_KEY, key=OTHER_KEY), AUTHORITY)
    ca_with_workload_id = (names(str(ID)), False)
    _refuses(authority(signer=forge.CA_KEY, key=OTHER_KEY, san=ca_with_workload_id))


def test_X5_25_paths_are_validated() -> None:
    _refuses(leaf(signer=OTHER_KEY))
    _refuses(leaf(ends=NOW - DAY / 2))
    _refuses(leaf(), bundle=forge.bundle(OTHER_AUTHORITY))
    _refuses(leaf(), bundle=forge.bundle(authority(ends=NOW - DAY / 2)))
    _refuses(leaf(), bundle=forge.bundle())


def test_X5_26_a_ca_certificate_is_refused_as_a_leaf() -> None:
    _refuses(leaf(bc=(x509.BasicConstraints(ca=True, path_length=None), True)))


def test_X5_27_a_leaf_that_could_sign_certificates_or_lists_is_refused() -> None:
    _refuses(leaf(ku=(usage("digital_signature", "key_cert_sign"), True)))
    _refuses(leaf(ku=(usage("digital_signature", "crl_sign"), True)))


def test_X5_28_another_scheme_is_refused() -> None:
    for uri in ("https://example.org/payments/api", "spiff://example.org/a", "urn:spiffe:a"):
        _refuses(leaf(san=(names(uri), False)))


def test_X5_29_an_id_without_path_is_refused() -> None:
    for uri in ("spiffe://example.org", "spiffe://example.org/"):
        _refuses(leaf(san=(names(uri), False)))


# --- written documents ----------------------------------------------------------------------------


def _written(*authorities: x509.Certificate) -> list[dict[str, Any]]:
    """Return the X.509 keys of a bundle document that also has JWT keys."""
    document = json.loads(forge.bundle(*authorities, a=forge.LEAF_KEY).document())
    return [key for key in document["keys"] if key["use"] != "jwt-svid"]


def test_X5_30_there_is_one_jwk_for_each_authority() -> None:
    assert len(_written(AUTHORITY)) == 1
    assert len(_written(AUTHORITY, OTHER_AUTHORITY)) == 2


def test_X5_31_the_use_is_x509_svid() -> None:
    assert [key["use"] for key in _written(AUTHORITY, OTHER_AUTHORITY)] == ["x509-svid"] * 2


def test_X5_32_there_is_no_key_id() -> None:
    assert not any("kid" in key for key in _written(AUTHORITY, OTHER_AUTHORITY))


def test_X5_33_the_certificate_is_standard_base64_of_der() -> None:
    (key,) = _written(AUTHORITY)
    assert base64.b64decode(key["x5c"][0], validate=True) == AUTHORITY.public_bytes(Encoding.DER)


def test_X5_34_there_is_one_certificate_in_an_entry() -> None:
    assert [len(key["x5c"]) for key in _written(AUTHORITY, OTHER_AUTHORITY)] == [1, 1]


def test_X5_35_the_certificates_are_signed_by_themselves() -> None:
    for key in _written(AUTHORITY, OTHER_AUTHORITY):
        certificate = x509.load_der_x509_certificate(base64.b64decode(key["x5c"][0]))
        certificate.verify_directly_issued_by(certificate)


# --- read documents -------------------------------------------------------------------------------


def _read(*entries: dict[str, Any]) -> tuple[x509.Certificate, ...]:
    document = json.dumps({"keys": entries, "spiffe_sequence": 1})
    return parse_document(TD, document.encode()).x509_authorities


def test_X5_36_an_entry_without_certificate_is_ignored() -> None:
    (good,) = _written(AUTHORITY)
    missing = {name: value for name, value in good.items() if name != "x5c"}
    assert _read(missing, good | {"x5c": []}, good) == (AUTHORITY,)
    assert _read(missing) == ()


def test_X5_37_a_second_certificate_is_ignored() -> None:
    (good,) = _written(AUTHORITY)
    (other,) = _written(OTHER_AUTHORITY)
    assert _read(good | {"x5c": [*good["x5c"], *other["x5c"]]}) == (AUTHORITY,)
    assert _read(good | {"x5c": [*good["x5c"], "not a certificate"]}) == (AUTHORITY,)


def test_X5_38_the_authorities_are_those_of_all_keys() -> None:
    assert _read(*_written(AUTHORITY, OTHER_AUTHORITY)) == (AUTHORITY, OTHER_AUTHORITY)
    jwt_only = json.loads(forge.bundle(a=forge.LEAF_KEY).document())["keys"]
    assert _read(*jwt_only) == ()
    _refuses(leaf(), bundle=forge.bundle(a=forge.LEAF_KEY))
