"""The rules for JWT-SVIDs (SPIFFE JWT-SVID, RFC 7515, RFC 7519).

PyJWT checks signatures. Claims are checked here, against the caller's time, so that no library
reads a clock. Messages name the section of the standard and never quote the token: they appear in
logs and in answers to the sender.

A service validates the same token at each of its requests. Which key signed a token never changes,
so that is remembered; bundle, audience and time are checked each time.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from cachetools import LRUCache
from jwt import PyJWS
from jwt.exceptions import PyJWTError

from agent.spiffe import keys
from agent.spiffe.ids import SpiffeId
from agent.spiffe.lifetimes import LEEWAY
from agent.spiffe.x509_rules import ValidationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from agent.spiffe.bundle import TrustBundle
    from agent.spiffe.ids import TrustDomain
    from agent.spiffe.keys import PublicKey

# A token travels in an HTTP header (JWT-SVID section 5.2), which servers limit to 8 to 16 KiB. The
# limit also bounds the input of the decoder before the signature is checked.
MAX_TOKEN_CHARS = 16 * 1024

# RFC 7515 section 3.1: three parts in base64url without padding.
_COMPACT = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
_JWS = PyJWS(algorithms=keys.JWS_ALGORITHMS)
# Of all remembered tokens; what is remembered of each takes about as much again.
_REMEMBERED_CHARS = 1 << 20


@dataclass(frozen=True, slots=True)
class _Signed:
    """A token with a valid signature by a key."""

    header: Mapping[str, Any]
    payload: bytes
    key: PublicKey
    size: int
    """The length of the token, which is more than that of header and payload."""


_SIGNED: LRUCache[str, _Signed] = LRUCache(_REMEMBERED_CHARS, lambda signed: signed.size)


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidatedJwtSvid:
    """A JWT-SVID with a valid signature, audience and time.

    `claims` are all claims of the token, with `aud` always as a list.
    """

    spiffe_id: SpiffeId
    expires_at: datetime
    audience: tuple[str, ...]
    claims: Mapping[str, Any]


def validate_jwt_svid(
    token: str, audience: str, bundles: Mapping[TrustDomain, TrustBundle], now: datetime
) -> ValidatedJwtSvid:
    """Validate a JWT-SVID for an audience at a time.

    The token's subject selects the bundle (Workload API section 6.3). All keys of the trust domain
    are tried for a token without `kid`, which is optional (JWT-SVID section 2.2). `iat` is not
    checked: the standard gives it no effect.

    Raises:
        ValidationError: the token is not a valid JWT-SVID for this audience at this time.
    """
    signed = _SIGNED.get(token)
    header, payload = _decode(token) if signed is None else (signed.header, signed.payload)
    claims = _claims(payload) if signed is None else json.loads(payload)
    spiffe_id = _subject(claims)
    bundle = bundles.get(spiffe_id.trust_domain)
    if bundle is None:
        raise ValidationError(f"there is no trust bundle for trust domain {spiffe_id.trust_domain}")
    candidates = _candidates(header, bundle)
    if signed is None or not any(signed.key is key for key in candidates):
        key = _signer(token, header["alg"], candidates)
        _SIGNED[token] = _Signed(header, payload, key, len(token))
    audiences = _audiences(claims)
    if audience not in audiences or not audience:
        raise ValidationError("the token is for another audience (JWT-SVID 3.2)")
    return ValidatedJwtSvid(
        spiffe_id=spiffe_id,
        expires_at=_check_time(claims, now),
        audience=audiences,
        claims=MappingProxyType(claims | {"aud": list(audiences)}),
    )


def _decode(token: str) -> tuple[dict[str, Any], bytes]:
    """Header and payload, unverified. The header's rules are checked first (JWT-SVID section 4)."""
    if len(token) > MAX_TOKEN_CHARS:
        raise ValidationError(f"the token is longer than {MAX_TOKEN_CHARS} characters")
    if not _COMPACT.fullmatch(token):
        raise ValidationError("the token is not in JWS compact serialization (JWT-SVID 5.1)")
    try:
        decoded = _JWS.decode_complete(token, options={"verify_signature": False})
    except PyJWTError:
        raise ValidationError("the token cannot be decoded") from None
    header = decoded["header"]
    if header.get("alg") not in keys.JWS_ALGORITHMS:
        raise ValidationError("the token's alg is not one of the nine of a JWT-SVID (JWT-SVID 2.1)")
    if header.get("typ", "JWT") not in ("JWT", "JOSE"):
        raise ValidationError("the token's typ is neither JWT nor JOSE (JWT-SVID 2.3)")
    if "crit" in header or "b64" in header:
        raise ValidationError("the token's header has crit or b64 (JWT-SVID 2)")
    return header, decoded["payload"]


def _claims(payload: bytes) -> dict[str, Any]:
    try:
        claims = json.loads(payload)
        # Python reads more than JSON allows (NaN, lone surrogates). Such claims could not be passed
        # on as JSON in UTF-8.
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
        raise ValidationError(
            "the token's sub is not a workload's SPIFFE ID (JWT-SVID 3.1)"
        ) from None


def _candidates(header: Mapping[str, Any], bundle: TrustBundle) -> list[PublicKey]:
    """Return the keys of the bundle that may have signed a token."""
    candidates = [
        key
        for kid, key in bundle.jwt_authorities.items()
        if header.get("kid", kid) == kid and header["alg"] in keys.jws_algorithms(key)
    ]
    if not candidates:
        raise ValidationError(
            f"no JWT authority of trust domain {bundle.trust_domain} has the token's kid and alg"
        )
    return candidates


def _signer(token: str, algorithm: str, candidates: Iterable[PublicKey]) -> PublicKey:
    for key in candidates:
        if _is_signed_by(token, key, algorithm):
            return key
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
        raise ValidationError("the token's aud is missing or not a list of strings (JWT-SVID 3.2)")
    return tuple(audiences)


def _check_time(claims: dict[str, Any], now: datetime) -> datetime:
    """Check `exp` and `nbf`; return when the token expires."""
    if "exp" not in claims:
        raise ValidationError("the token has no exp (JWT-SVID 3.3)")
    expires_at = _numeric_date(claims["exp"])
    if now - LEEWAY >= expires_at:
        raise ValidationError("the token has expired (JWT-SVID 3.3)")
    if "nbf" in claims and now + LEEWAY < _numeric_date(claims["nbf"]):
        raise ValidationError("the token is not valid yet (nbf)")
    return expires_at


def _numeric_date(value: object) -> datetime:
    """Read a NumericDate: seconds, possibly with a fraction (RFC 7519 section 2)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValidationError("the token's exp or nbf is not a number")
    try:
        return datetime.fromtimestamp(value, tz=UTC)
    except (ValueError, OverflowError, OSError):
        raise ValidationError("the token's exp or nbf is out of range") from None
