from __future__ import annotations

from dataclasses import fields, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, NameOID

from agent.authority.issuance import IssuanceError
from agent.authority.x509_issuer import X509Issuer, create_x509_authority
from agent.authority.x509_template import (
    X509SvidRequest,
    X509Template,
    authority_template,
    leaf_template,
)
from agent.spiffe.ids import SpiffeId, TrustDomain
from agent.spiffe.lifetimes import MIN_LIFETIME
from agent.spiffe.x509_rules import check_x509_authority, check_x509_svid, validate_x509_svid
from tests.vectors.pki import forge
from tests.vectors.pki.forge import DAY, ID, LEAF_KEY, TD, bundle, rsa_key

if TYPE_CHECKING:
    from agent.spiffe.keys import PrivateKey

HOUR = timedelta(hours=1)
NOW = forge.NOW + timedelta(microseconds=700_000)
WHOLE_NOW = forge.NOW
KEY = ec.generate_private_key(ec.SECP256R1())
CA = create_x509_authority(TD, KEY, now=NOW, ttl=DAY)
ISSUER = X509Issuer(CA, KEY, TD)
REQUEST = X509SvidRequest(
    spiffe_id=ID, public_key=LEAF_KEY.public_key(), ttl=HOUR, dns_names=("a.example", "b.example")
)
STRANGE_ID = SpiffeId(TrustDomain("other.example"), "/x")
ISSUERS: dict[str, PrivateKey] = {
    "ec-p256": KEY,
    "ec-p384": ec.generate_private_key(ec.SECP384R1()),
    "rsa-2048": rsa_key(2048),
    "rsa-4096": rsa_key(4096),
}


def _issue(**changes: Any) -> x509.Certificate:
    return ISSUER.issue(ISSUER.prepare(replace(REQUEST, **changes), NOW))


def _san(certificate: x509.Certificate) -> x509.SubjectAlternativeName:
    return certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value


def _bits(usage: x509.KeyUsage) -> set[str]:
    # The last two are undefined without key agreement.
    names = [name for name in dir(usage) if name[0] != "_" and name not in {"oid", "public_bytes"}]
    optional = {"encipher_only", "decipher_only"}
    return {name for name in names if name not in optional and getattr(usage, name)}


# --- the authority's certificate ---------------------------------------------------------------


def test_an_authority_has_the_extensions_of_the_profile() -> None:
    found = {e.oid: (e.value, e.critical) for e in CA.extensions}
    assert set(found) == {
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
        ExtensionOID.SUBJECT_KEY_IDENTIFIER,
    }
    assert found[ExtensionOID.BASIC_CONSTRAINTS] == (
        x509.BasicConstraints(ca=True, path_length=None),
        True,
    )
    usage, critical = found[ExtensionOID.KEY_USAGE]
    assert isinstance(usage, x509.KeyUsage)
    assert (_bits(usage), critical) == ({"key_cert_sign", "crl_sign"}, True)
    assert found[ExtensionOID.SUBJECT_ALTERNATIVE_NAME] == (
        forge.names("spiffe://example.org"),
        False,
    )
    assert CA.subject == CA.issuer
    assert CA.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)[0].value == "vouchd"
    CA.verify_directly_issued_by(CA)


def test_the_lifetime_of_an_authority_is_its_ttl_and_ten_seconds_before() -> None:
    assert CA.not_valid_before_utc == WHOLE_NOW - timedelta(seconds=10)
    assert CA.not_valid_after_utc == WHOLE_NOW + DAY


def test_each_authority_has_its_own_name() -> None:
    assert create_x509_authority(TD, KEY, now=NOW, ttl=DAY).subject != CA.subject


def test_an_authority_with_a_weak_key_is_refused() -> None:
    with pytest.raises(IssuanceError, match="1024 bits"):
        create_x509_authority(TD, rsa_key(1024), now=NOW, ttl=DAY)


def test_an_authority_with_too_short_a_lifetime_is_refused() -> None:
    with pytest.raises(IssuanceError, match="less than 2 seconds"):
        create_x509_authority(TD, KEY, now=NOW, ttl=timedelta(seconds=1))


# --- X.509-SVIDs -------------------------------------------------------------------------------


def test_a_leaf_has_the_extensions_of_the_profile() -> None:
    found = {e.oid: (e.value, e.critical) for e in _issue().extensions}
    assert set(found) == {
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.EXTENDED_KEY_USAGE,
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
        ExtensionOID.SUBJECT_KEY_IDENTIFIER,
        ExtensionOID.AUTHORITY_KEY_IDENTIFIER,
    }
    assert found[ExtensionOID.BASIC_CONSTRAINTS] == (
        x509.BasicConstraints(ca=False, path_length=None),
        True,
    )
    usage, critical = found[ExtensionOID.KEY_USAGE]
    assert isinstance(usage, x509.KeyUsage)
    assert (_bits(usage), critical) == ({"digital_signature"}, True)
    both = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    assert found[ExtensionOID.EXTENDED_KEY_USAGE] == (both, False)
    names = forge.names(str(ID), dns=("a.example", "b.example"))
    assert found[ExtensionOID.SUBJECT_ALTERNATIVE_NAME] == (names, False)


def test_key_identifiers_name_the_leaf_s_and_the_authority_s_key() -> None:
    extensions = _issue().extensions
    own = extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    assert own == x509.SubjectKeyIdentifier.from_public_key(LEAF_KEY.public_key())
    authority = extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    assert authority == x509.AuthorityKeyIdentifier.from_issuer_public_key(KEY.public_key())


def test_a_leaf_holds_the_requested_key_and_names() -> None:
    leaf = _issue()
    assert leaf.public_key() == LEAF_KEY.public_key()
    assert leaf.issuer == CA.subject
    assert leaf.subject.rfc4514_string() == "CN=a.example,O=vouchd"


@pytest.mark.parametrize("dns_names", [(), ("a" * 60 + ".example", "b.example")])
def test_without_a_short_dns_name_there_is_no_common_name(dns_names: tuple[str, ...]) -> None:
    leaf = _issue(dns_names=dns_names)
    assert leaf.subject.rfc4514_string() == "O=vouchd"
    assert tuple(_san(leaf).get_values_for_type(x509.DNSName)) == dns_names


def test_the_lifetime_of_a_leaf_is_its_ttl_and_ten_seconds_before() -> None:
    leaf = _issue()
    assert leaf.not_valid_before_utc == WHOLE_NOW - timedelta(seconds=10)
    assert leaf.not_valid_after_utc == WHOLE_NOW + HOUR


def test_a_leaf_does_not_outlive_its_authority() -> None:
    assert _issue(ttl=2 * DAY).not_valid_after_utc == CA.not_valid_after_utc


def test_a_leaf_does_not_outlive_its_limit() -> None:
    limit = WHOLE_NOW + timedelta(seconds=90, microseconds=900_000)
    leaf = _issue(not_after_limit=limit)
    assert leaf.not_valid_after_utc == WHOLE_NOW + timedelta(seconds=90)
    assert _issue(not_after_limit=NOW + 2 * DAY).not_valid_after_utc == WHOLE_NOW + HOUR


def test_the_shortest_lifetime_is_issued() -> None:
    assert _issue(ttl=MIN_LIFETIME).not_valid_after_utc == WHOLE_NOW + MIN_LIFETIME


@pytest.mark.parametrize(
    "changes",
    [
        {"ttl": timedelta(seconds=1)},
        {"ttl": timedelta(0)},
        {"ttl": -HOUR},
        {"not_after_limit": WHOLE_NOW + timedelta(seconds=1)},
        {"not_after_limit": WHOLE_NOW - HOUR},
    ],
)
def test_a_leaf_with_too_short_a_lifetime_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(IssuanceError, match="less than 2 seconds"):
        _issue(**changes)


def test_an_expired_authority_signs_nothing() -> None:
    with pytest.raises(IssuanceError, match="less than 2 seconds"):
        ISSUER.prepare(REQUEST, CA.not_valid_after_utc - timedelta(seconds=1))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"spiffe_id": STRANGE_ID}, "SPIFFE-ID 4.1"),
        ({"public_key": rsa_key(1024).public_key()}, "1024 bits"),
        ({"public_key": ec.generate_private_key(ec.SECP256K1()).public_key()}, "secp256k1"),
        ({"dns_names": ("bücher.example",)}, "DNSName|ascii|A-label"),
    ],
)
def test_a_request_that_breaks_the_profile_is_refused(changes: dict[str, Any], reason: str) -> None:
    request = replace(REQUEST, **changes)
    with pytest.raises(IssuanceError, match=reason) as caught:
        ISSUER.prepare(request, NOW)
    assert str(request.spiffe_id) in str(caught.value)


def test_serials_are_random_positive_and_fit_sixteen_octets() -> None:
    serials = {_issue().serial_number for _ in range(20)}
    assert len(serials) == 20
    assert all(0 < serial < 2**127 for serial in serials)
    assert max(serials) > 2**64


@pytest.mark.parametrize("key", list(ISSUERS.values()), ids=list(ISSUERS))
def test_each_kind_of_authority_issues_valid_svids(key: PrivateKey) -> None:
    certificate = create_x509_authority(TD, key, now=NOW, ttl=DAY)
    check_x509_authority(certificate, TD)
    issuer = X509Issuer(certificate, key, TD)
    leaf = issuer.issue(issuer.prepare(REQUEST, NOW))
    assert validate_x509_svid([leaf], bundle(certificate), NOW) == ID


# --- the steps of issuing ------------------------------------------------------------------------


def test_a_prepared_svid_is_issued_once() -> None:
    prepared = ISSUER.prepare(REQUEST, NOW)
    ISSUER.issue(prepared)
    with pytest.raises(IssuanceError, match="issued already"):
        ISSUER.issue(prepared)


def test_a_prepared_svid_is_issued_by_its_issuer_only() -> None:
    prepared = ISSUER.prepare(REQUEST, NOW)
    with pytest.raises(IssuanceError, match="another issuer"):
        X509Issuer(CA, KEY, TD).issue(prepared)
    check_x509_svid(ISSUER.issue(prepared))


def test_preparing_does_not_use_the_authority_s_key() -> None:
    key = Mock(spec=KEY, wraps=KEY, curve=KEY.curve)
    issuer = X509Issuer(CA, key, TD)
    issuer.prepare(REQUEST, NOW)
    key.sign.assert_not_called()


CRITICAL = True


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ((x509.BasicConstraints(ca=True, path_length=None), CRITICAL), "4.1"),
        ((forge.usage("digital_signature", "key_cert_sign"), CRITICAL), "keyCertSign"),
        ((forge.usage("digital_signature"), not CRITICAL), "key usage is not critical"),
        ((x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), not CRITICAL), "4.4"),
        ((forge.names(str(ID), str(ID)), not CRITICAL), "2 URI names"),
        ((forge.names("spiffe://example.org/other"), not CRITICAL), "another SPIFFE ID"),
    ],
)
def test_a_fault_in_the_template_is_refused_before_signing(
    fault: tuple[x509.ExtensionType, bool], reason: str
) -> None:
    def faulty(*arguments: Any) -> X509Template:
        good = leaf_template(*arguments)
        kept = [e for e in good.extensions if e[0].oid != fault[0].oid]
        return replace(good, extensions=(fault, *kept))

    with pytest.raises(IssuanceError, match=reason):
        X509Issuer(CA, KEY, TD, faulty).prepare(REQUEST, NOW)


def test_a_fault_in_the_authority_s_template_is_refused_before_signing() -> None:
    def faulty(*arguments: Any) -> X509Template:
        good = authority_template(*arguments)
        return replace(good, extensions=good.extensions[1:])

    with pytest.raises(IssuanceError, match="is not a CA"):
        create_x509_authority(TD, KEY, now=NOW, ttl=DAY, profile=faulty)


class Altering(X509Template):
    """A template whose encoder extends the lifetime in every certificate."""

    def sign(self, key: PrivateKey) -> x509.Certificate:
        return as_class(X509Template, self, not_after=self.not_after + DAY).sign(key)


class AlteringLater(X509Template):
    """A template whose encoder alters the serial when the authority's key signs."""

    def sign(self, key: PrivateKey) -> x509.Certificate:
        serial = self.serial + 1 if key is KEY else self.serial
        return as_class(X509Template, self, serial=serial).sign(key)


def as_class(kind: type[X509Template], template: X509Template, **changes: Any) -> X509Template:
    content = {each.name: getattr(template, each.name) for each in fields(template)}
    return kind(**(content | changes))


def test_an_encoder_that_alters_the_content_is_refused_before_signing() -> None:
    issuer = X509Issuer(CA, KEY, TD, lambda *given: as_class(Altering, leaf_template(*given)))
    with pytest.raises(IssuanceError, match="differs from its template"):
        issuer.prepare(REQUEST, NOW)


def test_a_certificate_that_differs_from_its_draft_is_not_handed_out() -> None:
    issuer = X509Issuer(CA, KEY, TD, lambda *given: as_class(AlteringLater, leaf_template(*given)))
    prepared = issuer.prepare(REQUEST, NOW)
    with pytest.raises(IssuanceError, match="differs from the draft"):
        issuer.issue(prepared)


@pytest.mark.parametrize(
    ("certificate", "key", "trust_domain", "reason"),
    [
        (CA, LEAF_KEY, TD, "key is not the certificate's"),
        (CA, KEY, TrustDomain("other.example"), "X509-SVID 3.2"),
        (forge.leaf(), LEAF_KEY, TD, "is not a CA"),
    ],
)
def test_an_issuer_needs_an_authority_and_its_key(
    certificate: x509.Certificate, key: PrivateKey, trust_domain: TrustDomain, reason: str
) -> None:
    with pytest.raises(IssuanceError, match=reason):
        X509Issuer(certificate, key, trust_domain)
