"""Whether a certificate or token is an SVID, and whether a trust domain vouches for it.

Certificates are judged twice: the SPIFFE rules for a leaf or an authority (X509-SVID sections 2 to
5) here, the path (RFC 5280) by `cryptography`. Tokens follow JWT-SVID; signatures are PyJWT's work,
claims are judged here, against the caller's time, so that no library reads a clock.

Messages name the rule that was broken and never quote the token: they end up in logs and in answers
to whoever sent it.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError
from jwt import PyJWS
from jwt.exceptions import PyJWTError

from agent import keys
from agent.errors import RequestError
from agent.spiffe import SpiffeId

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from agent.bundle import TrustBundle
    from agent.keys import PublicKey
    from agent.spiffe import TrustDomain

# For hosts whose clocks differ a little (JW-17). Within one host it is not needed at all, so it
# stays far below the minute that is common elsewhere: an expired token must not live on.
LEEWAY = timedelta(seconds=5)
# A token travels in an HTTP header (JW-20), where servers stop at 8 to 16 KiB; and what we decode
# before the signature is checked must stay small.
MAX_TOKEN_CHARS = 16 * 1024

# RFC 7515 section 3.1: three parts in base64url without padding (JW-01, JW-16).
_COMPACT = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
_JWS = PyJWS(algorithms=keys.JWS_ALGORITHMS)

_Extension = TypeVar("_Extension", bound=x509.ExtensionType)


class ValidationError(RequestError):
    """What was presented is not an SVID, or not one that its trust domain vouches for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidatedJwtSvid:
    """A JWT-SVID whose signature, audience and time hold.

    `claims` are all claims of the token, with `aud` always as a list.
    """

    spiffe_id: SpiffeId
    expires_at: datetime
    audience: tuple[str, ...]
    claims: Mapping[str, object]


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


# --- JWT -------------------------------------------------------------------------------------


def validate_jwt_svid(
    token: str, audience: str, bundles: Mapping[TrustDomain, TrustBundle], now: datetime
) -> ValidatedJwtSvid:
    """Judge a JWT-SVID for one who goes by the name `audience`.

    The bundle is chosen by the token's subject (WL-53). A token without `kid` is tried against all
    keys of its trust domain (Q-06). `iat` is not looked at: it limits nothing.

    Raises:
        ValidationError: the token is not a valid JWT-SVID for this audience at this time.
    """
    header, payload = _decode(token)
    claims = _claims(payload)
    spiffe_id = _subject(claims)
    bundle = bundles.get(spiffe_id.trust_domain)
    if bundle is None:
        raise ValidationError(f"no trust bundle for trust domain {spiffe_id.trust_domain} (WL-53)")
    _check_signature(token, header, bundle)
    audiences = _audiences(claims)
    if audience not in audiences or not audience:
        raise ValidationError("the token is not meant for this audience (JW-10)")
    return ValidatedJwtSvid(
        spiffe_id=spiffe_id,
        expires_at=_check_time(claims, now),
        audience=audiences,
        claims=MappingProxyType(claims | {"aud": list(audiences)}),
    )


def _decode(token: str) -> tuple[dict[str, Any], bytes]:
    """Header and payload, not yet trusted; a header that breaks a rule gets no further (JW-14)."""
    if len(token) > MAX_TOKEN_CHARS:
        raise ValidationError(f"the token is longer than {MAX_TOKEN_CHARS} characters")
    if not _COMPACT.fullmatch(token):
        raise ValidationError("the token is not in JWS compact serialization (JW-16)")
    try:
        decoded = _JWS.decode_complete(token, options={"verify_signature": False})
    except PyJWTError:
        raise ValidationError("the token cannot be decoded") from None
    header = decoded["header"]
    if header.get("alg") not in keys.JWS_ALGORITHMS:
        raise ValidationError("the token's alg is not one that a JWT-SVID may have (JW-05)")
    if header.get("typ", "JWT") not in ("JWT", "JOSE"):
        raise ValidationError("the token's typ is neither JWT nor JOSE (JW-07)")
    if "crit" in header or "b64" in header:
        raise ValidationError("the token needs extensions that JWT-SVID does not have (JW-02)")
    return header, decoded["payload"]


def _claims(payload: bytes) -> dict[str, Any]:
    try:
        claims = json.loads(payload)
        # Python reads more than JSON has (NaN, lone surrogates); what cannot be written as JSON
        # in UTF-8 could not be handed on either.
        json.dumps(claims, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        raise ValidationError("the token's claims are not valid JSON") from None
    if not isinstance(claims, dict):
        raise ValidationError("the token's claims are not a JSON object")
    return claims


def _subject(claims: dict[str, Any]) -> SpiffeId:
    subject = claims.get("sub")
    try:
        return SpiffeId.parse(subject if isinstance(subject, str) else "")
    except ValueError:
        raise ValidationError("the token's sub is not a workload's SPIFFE ID (JW-08)") from None


def _check_signature(token: str, header: dict[str, Any], bundle: TrustBundle) -> None:
    candidates = [
        key
        for kid, key in bundle.jwt_authorities.items()
        if header.get("kid", kid) == kid and header["alg"] in keys.jws_algorithms(key)
    ]
    if not candidates:
        raise ValidationError(
            f"no JWT authority of trust domain {bundle.trust_domain} has the token's kid and alg"
        )
    if not any(_is_signed_by(token, key, header["alg"]) for key in candidates):
        raise ValidationError("the token's signature is not valid")


def _is_signed_by(token: str, key: PublicKey, algorithm: str) -> bool:
    try:
        _JWS.decode_complete(token, key, algorithms=[algorithm])
    except PyJWTError:
        return False
    return True


def _audiences(claims: dict[str, Any]) -> tuple[str, ...]:
    value = claims.get("aud")
    audiences = [value] if isinstance(value, str) else value
    if not isinstance(audiences, list) or not all(isinstance(a, str) for a in audiences):
        raise ValidationError("the token has no usable aud (JW-10)")
    return tuple(audiences)


def _check_time(claims: dict[str, Any], now: datetime) -> datetime:
    """Return when the token expires."""
    if "exp" not in claims:
        raise ValidationError("the token has no exp (JW-13)")
    expires_at = _numeric_date(claims["exp"])
    if now - LEEWAY >= expires_at:
        raise ValidationError("the token has expired (JW-17)")
    if "nbf" in claims and now + LEEWAY < _numeric_date(claims["nbf"]):
        raise ValidationError("the token is not valid yet (nbf)")
    return expires_at


def _numeric_date(value: object) -> datetime:
    """RFC 7519 section 2: seconds, possibly with a fraction."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValidationError("the token's exp or nbf is not a number")
    try:
        return datetime.fromtimestamp(value, tz=UTC)
    except (ValueError, OverflowError, OSError):
        raise ValidationError("the token's exp or nbf is no date") from None
