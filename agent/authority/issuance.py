"""The steps of issuing that certificates and tokens have in common.

vouchd signs nothing that it has not checked:

1. Build the certificate or token in full and sign it with a throw-away key: the draft.
2. Parse the draft and check it with the rules for foreign SVIDs (`agent.spiffe.x509_rules`,
   `agent.spiffe.jwt_rules`) and with the stricter profile of vouchd.
3. Return the result as `Prepared`. Only the issuer that made it can redeem it, and only once.
4. Sign with the authority's key. The signed bytes must equal those of the draft.

A defect in a template or a library therefore costs a refused request, not a bad certificate.

Keys come from the caller and stay there: this room's issuers neither store, load nor rotate them.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Generic, TypeVar

from cryptography.hazmat.primitives.asymmetric import ec

from agent.errors import AuthorityError
from agent.spiffe import keys
from agent.spiffe.lifetimes import MIN_LIFETIME
from agent.spiffe.x509_rules import ValidationError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime, timedelta

    from agent.spiffe.ids import SpiffeId, TrustDomain
    from agent.spiffe.keys import PrivateKey

_Content = TypeVar("_Content")


class IssuanceError(AuthorityError):
    """The request breaks the profile, or the SVID could not live long enough."""


class Prepared(Generic[_Content]):
    """A checked draft: may be signed once, by the issuer that checked it."""

    __slots__ = ("_content", "_issuer")

    def __init__(self, issuer: object, content: _Content) -> None:
        self._issuer = issuer
        self._content = [content]

    def redeem(self, issuer: object) -> _Content:
        """Return the content to its issuer, once.

        Raises:
            IssuanceError: the issuer is another, or the content was redeemed before.
        """
        if issuer is not self._issuer:
            raise IssuanceError("another issuer prepared this")
        try:
            return self._content.pop()  # atomic: two threads cannot both get it
        except IndexError:
            raise IssuanceError("this was issued already; prepare it again") from None


@contextmanager
def refusing_to_sign(what: str) -> Iterator[None]:
    """Turn a broken rule into an IssuanceError that names what is not signed.

    Raises:
        IssuanceError: the block raised ValueError or ValidationError.
    """
    try:
        yield
    except (ValueError, ValidationError) as error:
        raise IssuanceError(f"refusing to sign {what}: {error}") from None


def require_trust_domain(spiffe_id: SpiffeId, trust_domain: TrustDomain) -> None:
    """Check that a SPIFFE ID belongs to a trust domain.

    Raises:
        ValueError: it belongs to another.
    """
    if spiffe_id.trust_domain != trust_domain:
        raise ValueError(
            f"an authority signs for its own trust domain only, {trust_domain} (SPIFFE-ID 4.1)"
        )


def lifetime(now: datetime, ttl: timedelta, *limits: datetime | None) -> tuple[datetime, datetime]:
    """Begin and end in whole seconds; the end is the earliest of the TTL and the limits.

    Raises:
        ValueError: less than MIN_LIFETIME is left.
    """
    begin = now.replace(microsecond=0)
    ends = [begin + ttl, *(limit for limit in limits if limit is not None)]
    end = min(ends).replace(microsecond=0)
    if end - begin < MIN_LIFETIME:
        raise ValueError(
            f"it would live less than {MIN_LIFETIME.seconds} seconds; its TTL, the end of its entry"
            f" or the end of its authority ({end:%Y-%m-%dT%H:%M:%SZ}) is too close"
        )
    return begin, end


def draft_key(key: PrivateKey) -> PrivateKey:
    """Generate a throw-away key for the same signature algorithm.

    The size of an RSA key does not show in the signed bytes, so that the fastest one serves.
    """
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return ec.generate_private_key(key.curve)
    return keys.generate(keys.KeyType.RSA_2048)
