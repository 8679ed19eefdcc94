"""The profile of our tokens; checks and signs them, in the steps of `agent.authority.issuance`."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeAlias

import jwt

from agent.authority.issuance import (
    IssuanceError,
    Prepared,
    draft_key,
    lifetime,
    refusing_to_sign,
    require_trust_domain,
)
from agent.spiffe import keys
from agent.spiffe.bundle import DEFAULT_REFRESH_HINT, TrustBundle
from agent.spiffe.jwt_rules import validate_jwt_svid

if TYPE_CHECKING:
    from datetime import timedelta

    from agent.spiffe.ids import SpiffeId, TrustDomain
    from agent.spiffe.keys import PrivateKey


@dataclass(frozen=True, slots=True, kw_only=True)
class JwtSvidRequest:
    """A request for a JWT-SVID.

    The token ends after `ttl`, at `not_after_limit` or with its authority, whatever is first.
    """

    spiffe_id: SpiffeId
    audience: tuple[str, ...]
    ttl: timedelta
    not_after_limit: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class JwtSvid:
    """An issued JWT-SVID. Times are whole seconds."""

    token: str
    spiffe_id: SpiffeId
    kid: str
    issued_at: datetime
    expires_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class _JwtDraft:
    spiffe_id: SpiffeId
    claims: dict[str, Any]
    signed_text: str


PreparedJwtSvid: TypeAlias = Prepared[_JwtDraft]


class JwtIssuer:
    """Signs JWT-SVIDs of one trust domain with one authority.

    Construction takes as long as `keys.generate`: drafts need a key.

    Args:
        kid: the authority's key ID.
        key: the authority's key.
        not_after: when the authority's lifetime ends.
        trust_domain: of all SVIDs.
    """

    def __init__(
        self, kid: str, key: PrivateKey, not_after: datetime, trust_domain: TrustDomain
    ) -> None:
        self._key = key
        self._not_after = not_after
        self._trust_domain = trust_domain
        self._header = {"kid": kid, "typ": "JWT", "alg": keys.jws_algorithms(key.public_key())[0]}
        self._draft_key = draft_key(key)
        self._draft_bundle = TrustBundle(
            trust_domain=trust_domain,
            x509_authorities=(),
            jwt_authorities={kid: self._draft_key.public_key()},
            sequence=0,
            refresh_hint=DEFAULT_REFRESH_HINT,
        )

    def prepare(self, request: JwtSvidRequest, now: datetime) -> PreparedJwtSvid:
        """Build and check a JWT-SVID without the authority's key.

        Raises:
            IssuanceError: it may not be signed; the message says why.
        """
        with refusing_to_sign(f"a JWT-SVID for {request.spiffe_id}"):
            require_trust_domain(request.spiffe_id, self._trust_domain)
            claims = _claims(request, self._not_after, now)
            draft = self._sign(claims, self._draft_key)
            self._check(draft, claims, now)
        return Prepared(
            self,
            _JwtDraft(spiffe_id=request.spiffe_id, claims=claims, signed_text=_signed_text(draft)),
        )

    def issue(self, prepared: PreparedJwtSvid) -> JwtSvid:
        """Sign a draft that `prepare` of this issuer returned; works once.

        Raises:
            IssuanceError: it was issued before, another issuer prepared it, or the signed content
                differs from the draft.
        """
        draft = prepared.redeem(self)
        token = self._sign(draft.claims, self._key)
        if _signed_text(token) != draft.signed_text:
            raise IssuanceError("the signed token differs from the draft that was checked")
        return JwtSvid(
            token=token,
            spiffe_id=draft.spiffe_id,
            kid=self._header["kid"],
            issued_at=datetime.fromtimestamp(draft.claims["iat"], tz=UTC),
            expires_at=datetime.fromtimestamp(draft.claims["exp"], tz=UTC),
        )

    def _sign(self, claims: dict[str, Any], key: PrivateKey) -> str:
        return jwt.encode(claims, key, headers=self._header, algorithm=self._header["alg"])

    def _check(self, draft: str, claims: dict[str, Any], now: datetime) -> None:
        bundles = {self._trust_domain: self._draft_bundle}
        svid = validate_jwt_svid(draft, claims["aud"][0], bundles, now)
        if svid.claims != claims or jwt.get_unverified_header(draft) != self._header:
            raise ValueError("the encoded token differs from its template")


def new_kid() -> str:
    """A new key ID: 128 random bits, so that no ID comes twice."""
    return secrets.token_hex(16)


def _claims(request: JwtSvidRequest, not_after: datetime, now: datetime) -> dict[str, Any]:
    begin, end = lifetime(now, request.ttl, not_after, request.not_after_limit)
    # Clients compare the audience with what they asked for: all values, in the requested order.
    # Always a list, because JWT-SVID section 3.2 speaks of one.
    audience = list(dict.fromkeys(request.audience))
    if not audience or not all(value.strip() for value in audience):
        raise ValueError("the audience is empty or has a blank value (JWT-SVID 3.2)")
    return {
        "sub": str(request.spiffe_id),
        "aud": audience,
        "exp": int(end.timestamp()),
        "iat": int(begin.timestamp()),
    }


def _signed_text(token: str) -> str:
    return token.rpartition(".")[0]
