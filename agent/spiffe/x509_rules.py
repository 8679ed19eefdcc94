"""The rules for X.509-SVIDs: is a certificate one, and does a trust bundle verify it?

A certificate is checked twice: against the SPIFFE rules for a leaf or an authority (X509-SVID
sections 2 to 5) here, and its path (RFC 5280 section 6) by `cryptography`. Time comes from the
caller, so that no library reads a clock.

Messages name the section of the standard. They never quote the certificate: they appear in logs and
in answers to the sender.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from agent.errors import RequestError
from agent.spiffe.ids import SpiffeId

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from agent.spiffe.bundle import TrustBundle
    from agent.spiffe.ids import TrustDomain

_Extension = TypeVar("_Extension", bound=x509.ExtensionType)


class ValidationError(RequestError):
    """A certificate or token is not an SVID, or its trust domain's bundle does not verify it."""


def check_x509_svid(certificate: x509.Certificate) -> SpiffeId:
    """Check a leaf certificate by itself and return its SPIFFE ID.

    The signature is not checked here: see `validate_x509_svid`.

    Raises:
        ValidationError: the certificate breaks a rule of X509-SVID.
    """
    extensions = _extensions(certificate)
    _check_leaf_constraints(extensions)
    _check_leaf_key_usage(extensions)
    _check_extended_key_usage(extensions)
    uri = _only_uri(extensions)
    san = extensions.get_extension_for_class(x509.SubjectAlternativeName)
    has_name = san.critical or _has_subject(certificate)
    _require(has_name, "3.1", "it has no subject, and its subject alternative name is not critical")
    try:
        return SpiffeId.parse(uri)
    except ValueError as error:
        raise ValidationError(f"not an X.509-SVID: {error} (X509-SVID 5.2)") from None


def check_x509_authority(certificate: x509.Certificate, trust_domain: TrustDomain) -> None:
    """Check a signing certificate by itself.

    Its SPIFFE ID must be the trust domain's. Section 3.2 only recommends that it has one.

    Raises:
        ValidationError: the certificate breaks a rule of X509-SVID.
    """
    extensions = _extensions(certificate)
    constraints = _find(extensions, x509.BasicConstraints)
    is_ca = constraints is not None and constraints.value.ca
    _require(is_ca, "4.1", "the authority is not a CA")
    usage = _key_usage(extensions)
    _require(usage.key_cert_sign, "4.3", "the key usage of the authority lacks keyCertSign")
    for_leaves = usage.digital_signature or usage.key_encipherment or usage.key_agreement
    _require(not for_leaves, "appendix A", "the authority has a key usage of leaves")
    is_of_domain = _only_uri(extensions) == trust_domain.id
    _require(is_of_domain, "3.2", f"the URI of the authority is not {trust_domain.id}")


def validate_x509_svid(
    chain: Sequence[x509.Certificate], bundle: TrustBundle, now: datetime
) -> SpiffeId:
    """Verify a leaf followed by its intermediates, with the bundle of the leaf's trust domain.

    Raises:
        ValidationError: the leaf is not an X.509-SVID, belongs to another trust domain, or has no
            valid path to an authority of the bundle.
    """
    if not chain:
        raise ValidationError("no certificate was presented")
    leaf, *intermediates = chain
    spiffe_id = check_x509_svid(leaf)
    domain = bundle.trust_domain
    if spiffe_id.trust_domain != domain:
        raise ValidationError(f"the X.509-SVID is not of trust domain {domain}")
    if not bundle.x509_authorities:
        raise ValidationError(f"the trust bundle of {domain} has no X.509 authority")
    # Clients and servers have the same kind of certificate (X509-SVID section 4.4). The client
    # verifier does not require a DNS name; the server verifier does.
    policy = PolicyBuilder().store(Store(list(bundle.x509_authorities))).time(now)
    try:
        policy.build_client_verifier().verify(leaf, intermediates)
    except VerificationError as error:
        raise ValidationError(f"no valid path to an authority of {domain}: {error}") from None
    return spiffe_id


def _extensions(certificate: x509.Certificate) -> x509.Extensions:
    try:
        return certificate.extensions
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        raise ValidationError("the extensions of the certificate cannot be read") from None


def _has_subject(certificate: x509.Certificate) -> bool:
    try:
        return bool(certificate.subject.rdns)
    except ValueError:
        raise ValidationError("the subject of the certificate cannot be read") from None


def _find(extensions: x509.Extensions, kind: type[_Extension]) -> x509.Extension[_Extension] | None:
    try:
        return extensions.get_extension_for_class(kind)
    except x509.ExtensionNotFound:
        return None


def _only_uri(extensions: x509.Extensions) -> str:
    san = _find(extensions, x509.SubjectAlternativeName)
    uris = san.value.get_values_for_type(x509.UniformResourceIdentifier) if san else []
    _require(len(uris) == 1, "2", f"it has {len(uris)} URI names instead of exactly one")
    return uris[0]


def _key_usage(extensions: x509.Extensions) -> x509.KeyUsage:
    usage = _find(extensions, x509.KeyUsage)
    if usage is None:
        raise ValidationError("not an X.509-SVID: it has no key usage (X509-SVID 4.3)")
    _require(usage.critical, "4.3", "the key usage is not critical")
    return usage.value


def _check_leaf_constraints(extensions: x509.Extensions) -> None:
    # Absent means "not a CA" (RFC 5280 section 4.2.1.9). Our own leaves always have the extension,
    # because some clients require it.
    constraints = _find(extensions, x509.BasicConstraints)
    _require(constraints is None or not constraints.value.ca, "4.1", "the leaf is a CA")
    names = _find(extensions, x509.NameConstraints)
    _require(names is None, "4.2", "the leaf has name constraints")


def _check_leaf_key_usage(extensions: x509.Extensions) -> None:
    usage = _key_usage(extensions)
    _require(usage.digital_signature, "4.3", "the key usage of the leaf lacks digitalSignature")
    _require(not usage.key_cert_sign, "4.3", "the key usage of the leaf has keyCertSign")
    _require(not usage.crl_sign, "4.3", "the key usage of the leaf has cRLSign")


def _check_extended_key_usage(extensions: x509.Extensions) -> None:
    usage = _find(extensions, x509.ExtendedKeyUsage)
    both = {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    has_both = usage is None or both <= set(usage.value)
    _require(has_both, "4.4", "the extended key usage lacks serverAuth or clientAuth")


def _require(holds: bool, section: str, problem: str) -> None:  # noqa: FBT001 - "require that ..."
    if not holds:
        raise ValidationError(f"not an X.509-SVID: {problem} (X509-SVID {section})")
