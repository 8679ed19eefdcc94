from __future__ import annotations

import subprocess
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, NameOID

from agent.authority import x509_issuer
from agent.authority.issuance import IssuanceError
from agent.authority.x509_issuer import X509Issuer, X509SvidRequest, create_x509_authority
from agent.spiffe.ids import SpiffeId, TrustDomain
from agent.spiffe.lifetimes import MIN_LIFE
from agent.spiffe.x509_rules import check_x509_authority, check_x509_svid, validate_x509_svid
from tests.vectors.pki import forge
from tests.vectors.pki.forge import DAY, ID, LEAF_KEY, TD, bundle, rsa_key

if TYPE_CHECKING:
    from pathlib import Path

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


def test_an_authority_has_the_profile() -> None:
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


def test_an_authority_lives_from_ten_seconds_ago_for_its_ttl() -> None:
    assert CA.not_valid_before_utc == WHOLE_NOW - timedelta(seconds=10)
    assert CA.not_valid_after_utc == WHOLE_NOW + DAY


def test_each_authority_has_its_own_name() -> None:
    assert create_x509_authority(TD, KEY, now=NOW, ttl=DAY).subject != CA.subject


def test_an_authority_with_a_weak_key_is_refused() -> None:
    with pytest.raises(IssuanceError, match="1024 bits"):
        create_x509_authority(TD, rsa_key(1024), now=NOW, ttl=DAY)


def test_an_authority_without_a_life_is_refused() -> None:
    with pytest.raises(IssuanceError, match="less than 2 seconds"):
        create_x509_authority(TD, KEY, now=NOW, ttl=timedelta(seconds=1))


# --- X.509-SVIDs -------------------------------------------------------------------------------


def test_a_leaf_has_the_profile() -> None:
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


def test_the_key_ids_tie_leaf_key_and_authority() -> None:
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
def test_without_a_dns_name_that_fits_there_is_no_common_name(dns_names: tuple[str, ...]) -> None:
    leaf = _issue(dns_names=dns_names)
    assert leaf.subject.rfc4514_string() == "O=vouchd"
    assert tuple(_san(leaf).get_values_for_type(x509.DNSName)) == dns_names


def test_a_leaf_lives_from_ten_seconds_ago_for_its_ttl() -> None:
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


def test_the_shortest_life_is_granted() -> None:
    assert _issue(ttl=MIN_LIFE).not_valid_after_utc == WHOLE_NOW + MIN_LIFE


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
def test_a_leaf_that_is_as_good_as_expired_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(IssuanceError, match="less than 2 seconds"):
        _issue(**changes)


def test_an_authority_past_its_life_signs_nothing() -> None:
    with pytest.raises(IssuanceError, match="less than 2 seconds"):
        ISSUER.prepare(REQUEST, CA.not_valid_after_utc - timedelta(seconds=1))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"spiffe_id": STRANGE_ID}, "SV-08"),
        ({"public_key": rsa_key(1024).public_key()}, "1024 bits"),
        ({"public_key": ec.generate_private_key(ec.SECP256K1()).public_key()}, "secp256k1"),
        ({"dns_names": ("bücher.example",)}, "DNSName|ascii|A-label"),
    ],
)
def test_what_breaks_the_profile_is_refused(changes: dict[str, Any], reason: str) -> None:
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
def test_every_kind_of_authority_issues_valid_svids(key: PrivateKey) -> None:
    certificate = create_x509_authority(TD, key, now=NOW, ttl=DAY)
    check_x509_authority(certificate, TD)
    issuer = X509Issuer(certificate, key, TD)
    leaf = issuer.issue(issuer.prepare(REQUEST, NOW))
    assert validate_x509_svid([leaf], bundle(certificate), NOW) == ID


@pytest.mark.parametrize("key", list(ISSUERS.values()), ids=list(ISSUERS))
def test_openssl_verifies_the_chain_for_servers_and_clients(
    key: PrivateKey, tmp_path: Path
) -> None:
    certificate = create_x509_authority(TD, key, now=NOW, ttl=DAY)
    issuer = X509Issuer(certificate, key, TD)
    leaf = issuer.issue(issuer.prepare(REQUEST, NOW))
    (tmp_path / "ca.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    (tmp_path / "leaf.pem").write_bytes(leaf.public_bytes(Encoding.PEM))
    for purpose in ("sslserver", "sslclient"):
        done = subprocess.run(
            [
                *("openssl", "verify", "-x509_strict", "-purpose", purpose),
                *("-attime", str(int(NOW.timestamp()))),
                *("-CAfile", str(tmp_path / "ca.pem"), str(tmp_path / "leaf.pem")),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr


def test_openssl_shows_what_operators_expect() -> None:
    shown = subprocess.run(
        ["openssl", "x509", "-noout", "-text"],
        input=_issue().public_bytes(Encoding.PEM),
        capture_output=True,
        check=True,
    ).stdout.decode()
    assert "URI:spiffe://example.org/payments/api, DNS:a.example, DNS:b.example" in shown
    assert "CA:FALSE" in shown
    assert "Subject: O = vouchd, CN = a.example" in shown


# --- nothing is signed that was not checked ----------------------------------------------------


def test_what_was_prepared_is_issued_once() -> None:
    prepared = ISSUER.prepare(REQUEST, NOW)
    ISSUER.issue(prepared)
    with pytest.raises(IssuanceError, match="already issued"):
        ISSUER.issue(prepared)


def test_what_was_prepared_is_issued_by_its_issuer_only() -> None:
    prepared = ISSUER.prepare(REQUEST, NOW)
    with pytest.raises(IssuanceError, match="another issuer"):
        X509Issuer(CA, KEY, TD).issue(prepared)
    check_x509_svid(ISSUER.issue(prepared))


def test_preparing_does_not_use_the_authority_s_key(monkeypatch: pytest.MonkeyPatch) -> None:
    issuer = X509Issuer(CA, KEY, TD)
    monkeypatch.setattr(issuer, "_key", None)
    issuer.prepare(REQUEST, NOW)


CRITICAL = True


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ((x509.BasicConstraints(ca=True, path_length=None), CRITICAL), "X5-12"),
        ((forge.usage("digital_signature", "key_cert_sign"), CRITICAL), "X5-20"),
        ((forge.usage("digital_signature"), not CRITICAL), "X5-16"),
        ((x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), not CRITICAL), "X5-24"),
        ((forge.names(str(ID), str(ID)), not CRITICAL), "X5-02"),
        ((forge.names("spiffe://example.org/other"), not CRITICAL), "another SPIFFE ID"),
    ],
)
def test_a_fault_in_the_template_is_caught_before_signing(
    fault: tuple[x509.ExtensionType, bool], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = x509_issuer._leaf_template

    def faulty(*arguments: Any) -> Any:
        good = make(*arguments)
        kept = [e for e in good.extensions if e[0].oid != fault[0].oid]
        return replace(good, extensions=(fault, *kept))

    monkeypatch.setattr(x509_issuer, "_leaf_template", faulty)
    with pytest.raises(IssuanceError, match=reason):
        ISSUER.prepare(REQUEST, NOW)


def test_a_fault_in_the_authority_s_template_is_caught_before_signing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make = x509_issuer._authority_template

    def faulty(*arguments: Any) -> Any:
        good = make(*arguments)
        return replace(good, extensions=good.extensions[1:])

    monkeypatch.setattr(x509_issuer, "_authority_template", faulty)
    with pytest.raises(IssuanceError, match="X5-11"):
        create_x509_authority(TD, KEY, now=NOW, ttl=DAY)


def test_an_encoder_that_alters_something_is_caught_before_signing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sign = x509_issuer._Template.sign

    def faulty(template: Any, key: PrivateKey) -> x509.Certificate:
        return sign(replace(template, not_after=template.not_after + DAY), key)

    monkeypatch.setattr(x509_issuer._Template, "sign", faulty)
    with pytest.raises(IssuanceError, match="differs from its template"):
        ISSUER.prepare(REQUEST, NOW)


def test_a_certificate_that_comes_out_different_is_not_handed_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prepared = ISSUER.prepare(REQUEST, NOW)
    sign = x509_issuer._Template.sign

    def faulty(template: Any, key: PrivateKey) -> x509.Certificate:
        return sign(replace(template, serial=template.serial + 1), key)

    monkeypatch.setattr(x509_issuer._Template, "sign", faulty)
    with pytest.raises(IssuanceError, match="differs from the draft"):
        ISSUER.issue(prepared)


@pytest.mark.parametrize(
    ("certificate", "key", "trust_domain", "reason"),
    [
        (CA, LEAF_KEY, TD, "do not belong together"),
        (CA, KEY, TrustDomain("other.example"), "X5-09"),
        (forge.leaf(), LEAF_KEY, TD, "X5-11"),
    ],
)
def test_an_issuer_needs_an_authority_and_its_key(
    certificate: x509.Certificate, key: PrivateKey, trust_domain: TrustDomain, reason: str
) -> None:
    with pytest.raises(IssuanceError, match=reason):
        X509Issuer(certificate, key, trust_domain)
