"""X509-SVID: issued leaves and signing certificates."""

from __future__ import annotations

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from .documents import X509Svid, extension, is_ca, trust_domain, uris, usages

Certificates = list[x509.Certificate]
# Usages that only a leaf's key may have.
_USAGES_OF_LEAVES = {"digital_signature", "key_agreement", "key_encipherment"}


def test_X5_01_there_is_one_uri_and_it_is_the_spiffe_id(x509_svids: list[X509Svid]) -> None:
    assert [uris(svid.leaf) for svid in x509_svids] == [
        [svid.message.spiffe_id] for svid in x509_svids
    ]


def test_X5_05_the_id_of_a_leaf_has_a_path(leaves: Certificates) -> None:
    for leaf in leaves:
        _scheme, _, _name, *segments = uris(leaf)[0].split("/")
        assert segments
        assert all(segments)


def test_X5_06_without_a_subject_the_alternative_name_is_critical(leaves: Certificates) -> None:
    for leaf in leaves:
        san = extension(leaf, x509.SubjectAlternativeName)
        assert san is not None
        assert san.critical or leaf.subject.rdns


def test_X5_07_a_signing_certificate_is_an_svid_itself(authorities: Certificates) -> None:
    assert all(len(uris(authority)) == 1 for authority in authorities)


def test_X5_08_the_id_of_a_signing_certificate_has_no_path(authorities: Certificates) -> None:
    assert all(uri.count("/") == 2 for authority in authorities for uri in uris(authority))


def test_X5_09_a_signing_certificate_belongs_to_the_trust_domain_of_its_leaves(
    x509_svids: list[X509Svid],
) -> None:
    for svid in x509_svids:
        domains = {trust_domain(uri) for authority in svid.authorities for uri in uris(authority)}
        assert domains <= {svid.trust_domain}


def test_X5_11_a_signing_certificate_is_a_ca(authorities: Certificates) -> None:
    assert all(is_ca(authority) for authority in authorities)


def test_X5_12_a_leaf_says_that_it_is_no_ca(leaves: Certificates) -> None:
    assert not any(is_ca(leaf) for leaf in leaves)


def test_X5_14_name_constraints_are_on_authorities_only_and_let_the_leaves_through(
    x509_svids: list[X509Svid],
) -> None:
    for svid in x509_svids:
        assert extension(svid.leaf, x509.NameConstraints) is None
        for authority in svid.authorities:
            constraints = extension(authority, x509.NameConstraints)
            permitted = (constraints.value.permitted_subtrees or []) if constraints else []
            hosts = [n.value for n in permitted if isinstance(n, x509.UniformResourceIdentifier)]
            assert not hosts or svid.trust_domain in hosts


def test_X5_15_key_usage_is_present(leaves: Certificates, authorities: Certificates) -> None:
    assert all(extension(each, x509.KeyUsage) for each in leaves + authorities)


def test_X5_16_key_usage_is_critical(leaves: Certificates, authorities: Certificates) -> None:
    for each in leaves + authorities:
        usage = extension(each, x509.KeyUsage)
        assert usage is not None
        assert usage.critical


def test_X5_17_an_authority_may_sign_certificates(authorities: Certificates) -> None:
    assert all("key_cert_sign" in usages(authority) for authority in authorities)


def test_X5_19_a_leaf_may_make_digital_signatures(leaves: Certificates) -> None:
    assert all("digital_signature" in usages(leaf) for leaf in leaves)


def test_X5_20_a_leaf_may_not_sign_certificates(leaves: Certificates) -> None:
    assert not any("key_cert_sign" in usages(leaf) for leaf in leaves)


def test_X5_21_a_leaf_may_not_sign_revocation_lists(leaves: Certificates) -> None:
    assert not any("crl_sign" in usages(leaf) for leaf in leaves)


def test_X5_22_an_authority_has_no_usage_of_leaves(authorities: Certificates) -> None:
    assert not any(usages(authority) & _USAGES_OF_LEAVES for authority in authorities)


def test_X5_23_a_leaf_has_an_extended_key_usage(leaves: Certificates) -> None:
    assert all(extension(leaf, x509.ExtendedKeyUsage) for leaf in leaves)


def test_X5_24_the_extended_key_usage_allows_both_sides_of_tls(leaves: Certificates) -> None:
    both = {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    for leaf in leaves:
        usage = extension(leaf, x509.ExtendedKeyUsage)
        assert usage is None or both <= set(usage.value)
