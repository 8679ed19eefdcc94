"""Trust bundles: the public keys that verify the SVIDs of a trust domain.

A bundle keeps the name of its trust domain (Trust Domain and Bundle section 3). It has three forms
on the wire: concatenated DER and a JWK Set for the Workload API, and the SPIFFE bundle document
with both kinds of keys. All three are deterministic: equal bundles give equal bytes.

Published bundles are strict. Reading follows the consumer rules of the standard: keys of an unknown
type or use are ignored. A key of a known type and use that cannot be read makes the whole bundle
invalid: to drop it without an error would cause an outage without an explanation.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from datetime import timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, cast

import pydantic
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding
from jwt.algorithms import ECAlgorithm, RSAAlgorithm
from jwt.exceptions import PyJWTError

from agent.spiffe import keys

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from agent.spiffe.ids import TrustDomain
    from agent.spiffe.keys import PublicKey

# The default for a bundle without a hint, and the value we publish (Trust Domain and Bundle 6.1).
DEFAULT_REFRESH_HINT = timedelta(minutes=5)
# 68 years: more than any sensible hint, and still within the range of a timedelta.
_MAX_REFRESH_SECONDS = 2**31 - 1

_X509_USE = "x509-svid"
_JWT_USE = "jwt-svid"
# The members of a public key. No other is read, so that a private key in a bundle is ignored, and
# no other is written (Trust Domain and Bundle section 4.2; PyJWT would add `key_ops`).
_KEY_MEMBERS = ("kty", "crv", "x", "y", "n", "e")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustBundle:
    """The authorities of one trust domain at one sequence number.

    `jwt_authorities` maps key IDs to keys; it is copied, sorted and read-only. `sequence` is 0 for
    a foreign bundle without one. A bundle without keys is legal: no SVID of that trust domain is
    valid then (Trust Domain and Bundle section 4.1.3).

    Raises:
        ValueError: the sequence is negative, a key ID is empty, or the refresh hint is negative or
            not in whole seconds.
    """

    trust_domain: TrustDomain
    x509_authorities: tuple[x509.Certificate, ...]
    jwt_authorities: Mapping[str, PublicKey]
    sequence: int
    refresh_hint: timedelta

    def __post_init__(self) -> None:
        if self.sequence < 0:
            raise ValueError("the sequence of a trust bundle cannot be negative")
        if self.refresh_hint < timedelta(0) or self.refresh_hint % timedelta(seconds=1):
            raise ValueError(
                "a refresh hint is a whole number of seconds (Trust Domain and Bundle 4.1.2)"
            )
        if "" in self.jwt_authorities:
            raise ValueError("a JWT authority needs a key ID (JWT-SVID 6.1)")
        frozen = MappingProxyType(dict(sorted(self.jwt_authorities.items())))
        object.__setattr__(self, "jwt_authorities", frozen)

    def x509_der(self) -> bytes:
        """The X.509 authorities as concatenated DER, the form of the Workload API."""
        return b"".join(map(_der, self.x509_authorities))

    def jwks(self) -> bytes:
        """The JWT authorities as a JWK Set (RFC 7517) for the Workload API.

        Without `use`: the API does not define it, and all clients accept its absence.
        """
        return _json({"keys": [_jwk(key, kid=kid) for kid, key in self.jwt_authorities.items()]})

    def document(self) -> bytes:
        """The SPIFFE bundle document (SPIFFE Trust Domain and Bundle, section 4)."""
        x509_keys = [_x509_jwk(certificate) for certificate in self.x509_authorities]
        jwt_keys = [_jwk(key, kid=kid, use=_JWT_USE) for kid, key in self.jwt_authorities.items()]
        return _json(
            {
                "keys": x509_keys + jwt_keys,
                "spiffe_sequence": self.sequence,
                "spiffe_refresh_hint": self.refresh_hint // timedelta(seconds=1),
            }
        )


def parse_document(trust_domain: TrustDomain, data: bytes) -> TrustBundle:
    """Read a SPIFFE bundle document of `trust_domain`; the document itself does not name it.

    Raises:
        ValueError: it is not such a document, or holds a key that cannot be read.
    """
    document = _read(trust_domain, data)
    try:
        return TrustBundle(
            trust_domain=trust_domain,
            x509_authorities=_x509_authorities(_with_use(document.keys, _X509_USE)),
            jwt_authorities=_jwt_authorities(_with_use(document.keys, _JWT_USE)),
            sequence=document.spiffe_sequence,
            refresh_hint=timedelta(seconds=document.spiffe_refresh_hint),
        )
    except ValueError as error:
        raise ValueError(f"trust bundle of {trust_domain}: {error}") from None


def parse_jwks(trust_domain: TrustDomain, data: bytes) -> Mapping[str, PublicKey]:
    """Read the JWK Set of a JWT bundle of the Workload API: key ID to key.

    Keys without `use` count, because that API does not define it. Keys of another use do not.

    Raises:
        ValueError: it is not a JWK Set, or holds a key that cannot be read.
    """
    document = _read(trust_domain, data)
    try:
        return _jwt_authorities(_with_use(document.keys, _JWT_USE, default=_JWT_USE))
    except ValueError as error:
        raise ValueError(f"JWT bundle of {trust_domain}: {error}") from None


_Jwk: TypeAlias = dict[str, object]


class _Document(pydantic.BaseModel):
    """The members of a bundle document; others are allowed (section 4.1)."""

    model_config = pydantic.ConfigDict(strict=True)

    keys: list[_Jwk]
    spiffe_sequence: Annotated[int, pydantic.Field(ge=0)] = 0
    spiffe_refresh_hint: Annotated[int, pydantic.Field(ge=0, le=_MAX_REFRESH_SECONDS)] = (
        DEFAULT_REFRESH_HINT // timedelta(seconds=1)
    )


def _read(trust_domain: TrustDomain, data: bytes) -> _Document:
    try:
        return _Document.model_validate_json(data)
    except pydantic.ValidationError as error:
        first = error.errors(include_input=False)[0]
        place = ".".join(map(str, first["loc"])) or "document"
        raise ValueError(f"trust bundle of {trust_domain}: {place}: {first['msg']}") from None


def _with_use(jwks: list[_Jwk], use: str, *, default: object = None) -> list[_Jwk]:
    return [jwk for jwk in jwks if jwk.get("use", default) == use]


def _x509_authorities(jwks: list[_Jwk]) -> tuple[x509.Certificate, ...]:
    """The union of the certificates, in the order of the document (X509-SVID section 6.2)."""
    found = (_x509_authority(jwk) for jwk in jwks)
    return tuple(dict.fromkeys(certificate for certificate in found if certificate is not None))


def _x509_authority(jwk: _Jwk) -> x509.Certificate | None:
    chain = jwk.get("x5c")
    # Without a certificate the entry is ignored (X509-SVID section 6.2).
    if not chain or (key := _public_key(jwk)) is None:
        return None
    try:
        # Only the first one counts (X509-SVID section 6.2), in standard base64 (section 6.1).
        der = base64.b64decode(cast("list[str]", chain)[0], validate=True)
        certificate = x509.load_der_x509_certificate(der)
        matches = certificate.public_key() == key
    except (ValueError, TypeError, LookupError, UnsupportedAlgorithm):
        raise ValueError("an x5c value is not a list of base64 DER certificates") from None
    if not matches:  # RFC 7517 section 4.7
        raise ValueError("an x5c certificate has another key than the JWK that holds it")
    return certificate


def _jwt_authorities(jwks: list[_Jwk]) -> dict[str, PublicKey]:
    authorities: dict[str, PublicKey] = {}
    for jwk in jwks:
        key = _public_key(jwk)
        if key is None:
            continue
        kid = jwk.get("kid")
        if not isinstance(kid, str) or not kid:
            raise ValueError("a JWT authority has no key ID (kid)")
        if authorities.setdefault(kid, key) != key:
            raise ValueError(f"two JWT authorities have the key ID {kid!r}")
    return authorities


def _public_key(jwk: _Jwk) -> PublicKey | None:
    """The key of a JWK; None for an unknown type or curve (Trust Domain and Bundle 4.2.1)."""
    members = {name: jwk[name] for name in _KEY_MEMBERS if name in jwk}
    from_jwk: Callable[[dict[str, Any]], object]
    match members:
        case {"kty": "EC", "crv": "P-256" | "P-384" | "P-521"}:
            from_jwk = ECAlgorithm.from_jwk
        case {"kty": "RSA"}:
            from_jwk = RSAAlgorithm.from_jwk
        case _:
            return None
    try:
        key = from_jwk(members)
    except (ValueError, TypeError, PyJWTError):
        raise ValueError(f"a JWK of type {members['kty']} cannot be read") from None
    return keys.check_public(key)


def _jwk(key: PublicKey, **others: str) -> _Jwk:
    if isinstance(key, rsa.RSAPublicKey):
        members = RSAAlgorithm.to_jwk(key, as_dict=True)
    else:
        members = ECAlgorithm.to_jwk(key, as_dict=True)
    return {name: members[name] for name in _KEY_MEMBERS if name in members} | others


def _x509_jwk(certificate: x509.Certificate) -> _Jwk:
    jwk = _jwk(keys.check_public(certificate.public_key()), use=_X509_USE)
    return jwk | {"x5c": [base64.b64encode(_der(certificate)).decode()]}


def _der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
