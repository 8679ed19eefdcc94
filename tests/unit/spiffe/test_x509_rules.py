"""The rules for X.509-SVIDs: valid certificates pass, each broken rule is named."""

from __future__ import annotations

from datetime import datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from agent.spiffe.ids import TrustDomain
from agent.spiffe.x509_rules import (
    ValidationError,
    check_x509_authority,
    check_x509_svid,
    validate_x509_svid,
)
from tests.vectors.pki.forge import CA_KEY, DAY, ID, NOW, TD, authority, bundle, leaf, names, usage

SERVER, CLIENT = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH
NO_SUBJECT = x509.Name([])
TREE = x509.NameConstraints([x509.UniformResourceIdentifier("example.org")], None)


@pytest.mark.parametrize(
    "certificate",
    [
        leaf(),
        leaf(bc=None),
        leaf(bc=(x509.BasicConstraints(ca=False, path_length=None), False)),
        leaf(ku=(usage("digital_signature", "key_encipherment", "key_agreement"), True)),
        leaf(eku=None),
        leaf(eku=(x509.ExtendedKeyUsage([CLIENT, SERVER]), True)),
        leaf(
            eku=(x509.ExtendedKeyUsage([SERVER, ExtendedKeyUsageOID.TIME_STAMPING, CLIENT]), False)
        ),
        leaf(san=(names(str(ID), dns=("a.example", "*.b.example")), False)),
        leaf(subject=NO_SUBJECT, san=(names(str(ID)), True)),
        leaf(san=(names(str(ID)), True)),
    ],
)
def test_leaves_within_the_rules_pass(certificate: x509.Certificate) -> None:
    assert check_x509_svid(certificate) == ID


@pytest.mark.parametrize(
    ("reason", "certificate"),
    [
        ("URI names instead of exactly one", leaf(san=None)),
        ("URI names instead of exactly one", leaf(san=(names(dns=("a.example",)), False))),
        (
            "URI names instead of exactly one",
            leaf(san=(names(str(ID), "spiffe://example.org/other"), False)),
        ),
        ("URI names instead of exactly one", leaf(san=(names(str(ID), str(ID)), False))),
        (
            "URI names instead of exactly one",
            leaf(san=(names(str(ID), "https://example.org/"), False)),
        ),
        ("has no path", leaf(san=(names("spiffe://example.org"), False))),
        ("X509-SVID 3.1", leaf(subject=NO_SUBJECT)),
        ("leaf is a CA", leaf(bc=(x509.BasicConstraints(ca=True, path_length=None), True))),
        ("X509-SVID 4.2", leaf(nc=(TREE, True))),
        ("has no key usage", leaf(ku=None)),
        ("key usage is not critical", leaf(ku=(usage("digital_signature"), False))),
        ("lacks digitalSignature", leaf(ku=(usage("key_agreement"), True))),
        ("has keyCertSign", leaf(ku=(usage("digital_signature", "key_cert_sign"), True))),
        ("has cRLSign", leaf(ku=(usage("digital_signature", "crl_sign"), True))),
        ("X509-SVID 4.4", leaf(eku=(x509.ExtendedKeyUsage([SERVER]), False))),
        ("X509-SVID 4.4", leaf(eku=(x509.ExtendedKeyUsage([CLIENT]), False))),
        ("leaf is a CA", leaf(bc=(x509.BasicConstraints(ca=True, path_length=0), True))),
        ("X509-SVID 5.2", leaf(san=(names("https://example.org/payments"), False))),
        ("X509-SVID 5.2", leaf(san=(names("spiffe://example.org/"), False))),
        ("X509-SVID 5.2", leaf(san=(names("spiffe://example.org/a//b"), False))),
        ("X509-SVID 5.2", leaf(san=(names("spiffe://user@example.org/a"), False))),
        ("X509-SVID 5.2", leaf(san=(names("spiffe://example.org/a?b"), False))),
    ],
)
def test_each_rule_for_leaves_is_enforced_and_named(
    reason: str, certificate: x509.Certificate
) -> None:
    with pytest.raises(ValidationError, match=reason):
        check_x509_svid(certificate)


def test_extensions_that_cannot_be_read_are_refused() -> None:
    garbage = x509.UnrecognizedExtension(x509.OID_SUBJECT_ALTERNATIVE_NAME, b"\x30\x05junk")
    with pytest.raises(ValidationError, match="extensions"):
        check_x509_svid(leaf(san=(garbage, False)))


def test_a_subject_that_cannot_be_read_is_refused() -> None:
    der = leaf().public_bytes(Encoding.DER)
    # The subject is the second "forged" in it, after the issuer; 0xff is no UTF-8.
    issuer, middle, rest = der.split(b"forged", 2)
    broken = x509.load_der_x509_certificate(issuer + b"forged" + middle + b"\xff" * 6 + rest)
    with pytest.raises(ValidationError, match="subject"):
        check_x509_svid(broken)


def test_an_authority_within_the_rules_passes() -> None:
    check_x509_authority(authority(), TD)
    check_x509_authority(authority(ku=(usage("key_cert_sign"), True)), TD)


@pytest.mark.parametrize(
    ("reason", "certificate"),
    [
        ("authority is not a CA", authority(bc=None)),
        (
            "authority is not a CA",
            authority(bc=(x509.BasicConstraints(ca=False, path_length=None), True)),
        ),
        ("has no key usage", authority(ku=None)),
        ("key usage is not critical", authority(ku=(usage("key_cert_sign"), False))),
        ("lacks keyCertSign", authority(ku=(usage("crl_sign"), True))),
        ("X509-SVID appendix A", authority(ku=(usage("key_cert_sign", "digital_signature"), True))),
        ("X509-SVID appendix A", authority(ku=(usage("key_cert_sign", "key_encipherment"), True))),
        ("X509-SVID appendix A", authority(ku=(usage("key_cert_sign", "key_agreement"), True))),
        ("URI names instead of exactly one", authority(san=None)),
        ("X509-SVID 3.2", authority(san=(names("spiffe://example.org/ca"), False))),
        ("X509-SVID 3.2", authority(trust_domain=TrustDomain("other.example"))),
    ],
)
def test_each_rule_for_authorities_is_enforced_and_named(
    reason: str, certificate: x509.Certificate
) -> None:
    with pytest.raises(ValidationError, match=reason):
        check_x509_authority(certificate, TD)


MIDDLE_KEY = ec.generate_private_key(ec.SECP256R1())
FOREIGN_KEY = ec.generate_private_key(ec.SECP256R1())


def test_a_leaf_of_an_authority_of_the_bundle_is_valid() -> None:
    assert validate_x509_svid([leaf()], bundle(authority()), NOW) == ID


def test_the_issuer_is_found_among_authorities_of_the_same_name() -> None:
    trusted = bundle(authority(key=FOREIGN_KEY), authority(key=MIDDLE_KEY), authority())
    assert validate_x509_svid([leaf()], trusted, NOW) == ID


def test_a_leaf_below_an_intermediate_is_valid() -> None:
    chain = [leaf(signer=MIDDLE_KEY), authority(key=MIDDLE_KEY, signer=CA_KEY)]
    assert validate_x509_svid(chain, bundle(authority()), NOW) == ID


@pytest.mark.parametrize(
    ("chain", "now", "reason"),
    [
        ([], NOW, "no certificate"),
        ([leaf(signer=FOREIGN_KEY)], NOW, "no valid path"),
        ([leaf(signer=FOREIGN_KEY), authority(key=FOREIGN_KEY)], NOW, "no valid path"),
        ([leaf(signer=MIDDLE_KEY)], NOW, "no valid path"),
        ([leaf(signer=MIDDLE_KEY), leaf(key=MIDDLE_KEY)], NOW, "no valid path"),
        ([leaf()], NOW - 2 * DAY, "no valid path.*not valid at validation time"),
        ([leaf()], NOW + 2 * DAY, "no valid path.*not valid at validation time"),
        ([leaf(ends=NOW + 3 * DAY)], NOW + 2 * DAY, "no valid path"),
        ([authority()], NOW, "leaf is a CA"),
        ([leaf(eku=(x509.ExtendedKeyUsage([SERVER]), False))], NOW, "X509-SVID 4.4"),
    ],
)
def test_a_leaf_without_a_valid_path_is_refused(
    chain: list[x509.Certificate], now: datetime, reason: str
) -> None:
    with pytest.raises(ValidationError, match=reason):
        validate_x509_svid(chain, bundle(authority()), now)


def test_a_leaf_is_valid_in_its_own_trust_domain_only() -> None:
    other = TrustDomain("other.example")
    with pytest.raises(ValidationError, match=r"not of trust domain other\.example"):
        validate_x509_svid([leaf()], bundle(authority(), trust_domain=other), NOW)


def test_a_bundle_without_authorities_verifies_nothing() -> None:
    with pytest.raises(ValidationError, match=r"has no X.509 authority"):
        validate_x509_svid([leaf()], bundle(), NOW)


def test_an_altered_leaf_is_refused() -> None:
    der = leaf().public_bytes(Encoding.DER).replace(b"/payments/api", b"/payments/apj")
    with pytest.raises(ValidationError, match="no valid path"):
        validate_x509_svid([x509.load_der_x509_certificate(der)], bundle(authority()), NOW)
