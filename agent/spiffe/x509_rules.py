"""Whether a certificate or token is an SVID, and whether a trust domain vouches for it.

Certificates are judged twice: the SPIFFE rules for a leaf or an authority (X509-SVID sections 2 to
5) here, the path (RFC 5280) by `cryptography`. Tokens follow JWT-SVID; signatures are PyJWT's work,
claims are judged here, against the caller's time, so that no library reads a clock.

Messages name the rule that was broken and never quote the token: they end up in logs and in answers
to whoever sent it.
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
    """What was presented is not an SVID, or not one that its trust domain vouches for."""


# --- X.509 -----------------------------------------------------------------------------------


def check_x509_svid(certificate: x509.Certificate) -> SpiffeId:
    """Judge a leaf certificate by itself and return the SPIFFE ID in it.

    This says nothing about who signed it: see `validate_x509_svid`.

    Raises:
        ValidationError: it breaks a rule of X509-SVID.
    """
    extensions = _extensions(certificate)
    _check_leaf_constraints(extensions)
    _check_leaf_key_usage(extensions)
    _check_extended_key_usage(extensions)
    uri = _only_uri(extensions)
    san = extensions.get_extension_for_class(x509.SubjectAlternativeName)
    _require(san.critical or _has_subject(certificate), "X5-06: no subject, SAN not critical")
    try:
        return SpiffeId.parse(uri)
    except ValueError as error:
        raise ValidationError(f"not an X.509-SVID (X5-05, X5-28, X5-29): {error}") from None


def check_x509_authority(certificate: x509.Certificate, trust_domain: TrustDomain) -> None:
    """Judge a signing certificate by itself.

    Its SPIFFE ID must be that of the trust domain; the standard only advises this (X5-07 to X5-09).

    Raises:
        ValidationError: it breaks a rule of X509-SVID.
    """
    extensions = _extensions(certificate)
    constraints = _find(extensions, x509.BasicConstraints)
    _require(constraints is not None and constraints.value.ca, "X5-11: not a CA")
    usage = _key_usage(extensions)
    _require(usage.key_cert_sign, "X5-17: an authority needs keyCertSign")
    _require(
        not (usage.digital_signature or usage.key_encipherment or usage.key_agreement),
        "X5-22: an authority may not have a key usage of leaves",
    )
    _require(
        _only_uri(extensions) == trust_domain.id,
        f"X5-08, X5-09: the URI of the authority is not {trust_domain.id}",
    )


def validate_x509_svid(
    chain: Sequence[x509.Certificate], bundle: TrustBundle, now: datetime
) -> SpiffeId:
    """Judge a leaf followed by its intermediates, with the bundle of the leaf's trust domain.

    Raises:
        ValidationError: the leaf is not an X.509-SVID, is of another trust domain (TB-17), or has
            no valid path to an authority of the bundle.
    """
    _require(bool(chain), "no certificate was presented")
    leaf, *intermediates = chain
    spiffe_id = check_x509_svid(leaf)
    domain = bundle.trust_domain
    if spiffe_id.trust_domain != domain:
        raise ValidationError(f"the X.509-SVID is not of trust domain {domain} (TB-17)")
    if not bundle.x509_authorities:
        raise ValidationError(f"trust domain {domain} has no X.509 authority (TB-11)")
    # Clients and servers hold the same kind of certificate (X5-24); unlike the server verifier,
    # this one does not ask for a DNS name.
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
    _require(len(uris) == 1, f"X5-02: {len(uris)} URI SANs instead of exactly one")
    return uris[0]


def _key_usage(extensions: x509.Extensions) -> x509.KeyUsage:
    usage = _find(extensions, x509.KeyUsage)
    if usage is None:
        raise ValidationError("not an X.509-SVID: X5-15: no keyUsage")
    _require(usage.critical, "X5-16: keyUsage is not critical")
    return usage.value


def _check_leaf_constraints(extensions: x509.Extensions) -> None:
    # Absent means "not a CA" (RFC 5280 section 4.2.1.9); issuance is stricter than this (IC-04).
    constraints = _find(extensions, x509.BasicConstraints)
    _require(constraints is None or not constraints.value.ca, "X5-12, X5-26: the leaf is a CA")
    names = _find(extensions, x509.NameConstraints)
    _require(names is None, "X5-14: name constraints on a leaf")


def _check_leaf_key_usage(extensions: x509.Extensions) -> None:
    usage = _key_usage(extensions)
    _require(usage.digital_signature, "X5-19: a leaf needs digitalSignature")
    _require(not usage.key_cert_sign, "X5-20, X5-27: a leaf may not have keyCertSign")
    _require(not usage.crl_sign, "X5-21, X5-27: a leaf may not have cRLSign")


def _check_extended_key_usage(extensions: x509.Extensions) -> None:
    usage = _find(extensions, x509.ExtendedKeyUsage)
    both = {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    _require(
        usage is None or both <= set(usage.value), "X5-24: serverAuth or clientAuth is missing"
    )


def _require(holds: bool, rule: str) -> None:  # noqa: FBT001 - reads as "require that"
    if not holds:
        raise ValidationError(f"not an X.509-SVID: {rule}")
