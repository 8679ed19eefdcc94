"""What vouchd signs: the exact profiles of its certificates and tokens.

Nothing is signed that was not checked. A certificate or token is first built in full and signed
with a throw-away key; that draft is parsed back and judged by the same rules as a stranger's
(`agent.spiffe.x509_rules`) and by our own stricter profile. What passed is handed out as a one-shot
`Prepared`, and only the issuer that made it can turn it into the real thing, whose signed bytes
must equal those of the draft. A fault in a template or a library thus costs a refused request, not
a bad certificate in the world.

Keys come from the caller and stay there: nothing here stores, loads or rotates them.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Generic, TypeVar

from cryptography.hazmat.primitives.asymmetric import ec

from agent.errors import AuthorityError
from agent.spiffe import keys
from agent.spiffe.lifetimes import MIN_LIFE
from agent.spiffe.x509_rules import ValidationError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime, timedelta

    from agent.spiffe.ids import SpiffeId, TrustDomain
    from agent.spiffe.keys import PrivateKey

_Content = TypeVar("_Content")


class IssuanceError(AuthorityError):
    """The authority refuses to sign this: it breaks the profile, or could not live long enough."""


class Prepared(Generic[_Content]):
    """Something that passed every check and may be signed: once, by the issuer that checked it."""

    __slots__ = ("_content", "_issuer")

    def __init__(self, issuer: object, content: _Content) -> None:
        self._issuer = issuer
        self._content = [content]

    def redeem(self, issuer: object) -> _Content:
        """Give up the content, to its issuer and only once.

        Raises:
            IssuanceError: another issuer asks, or it was redeemed before.
        """
        if issuer is not self._issuer:
            raise IssuanceError("this was prepared by another issuer")
        try:
            return self._content.pop()  # one step, so that two threads cannot both have it
        except IndexError:
            raise IssuanceError("this was already issued; prepare it again") from None


@contextmanager
def refusal(what: str) -> Iterator[None]:
    """Turn any broken rule into an IssuanceError that names what will not be signed.

    Raises:
        IssuanceError: see there.
    """
    try:
        yield
    except (ValueError, ValidationError) as error:
        raise IssuanceError(f"refusing to sign {what}: {error}") from None


def check_member(spiffe_id: SpiffeId, trust_domain: TrustDomain) -> None:
    """Refuse an ID of another trust domain.

    Raises:
        ValueError: it is one.
    """
    if spiffe_id.trust_domain != trust_domain:
        raise ValueError(f"it is not of trust domain {trust_domain} (SV-08)")


def life(now: datetime, ttl: timedelta, *limits: datetime | None) -> tuple[datetime, datetime]:
    """Start and end in whole seconds; the end is the earliest of the TTL and the limits.

    Raises:
        ValueError: what is left is less than MIN_LIFE.
    """
    start = now.replace(microsecond=0)
    ends = [start + ttl, *(limit for limit in limits if limit is not None)]
    end = min(ends).replace(microsecond=0)
    if end - start < MIN_LIFE:
        raise ValueError(
            f"it would live less than {MIN_LIFE.seconds} seconds, because of its TTL, of the end of"
            f" its entry, or of the end of its authority ({end:%Y-%m-%dT%H:%M:%SZ})"
        )
    return start, end


def draft_key(key: PrivateKey) -> PrivateKey:
    """A throw-away key whose signatures name the same algorithm.

    For RSA its size does not show in what is signed, so the quickest one does.
    """
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return ec.generate_private_key(key.curve)
    return keys.generate(keys.KeyType.RSA_2048)
