"""Which authorities a trust domain has, which of them signs, and which comes next.

| state   | signs | in the bundle | leaves                                  |
|---------|-------|---------------|-----------------------------------------|
| ACTIVE  | yes   | yes           | becomes RETIRED when a successor is here |
| RETIRED | no    | yes           | at a succession after its life has ended |

There is exactly one ACTIVE authority of each kind, always: an `AuthoritySet` that breaks this
cannot be made. Every change raises the sequence of the bundle in the same step (TB-05). The stored
form holds private keys, so that no message about it quotes any of it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import pydantic
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding

from agent import keys
from agent.bundle import DEFAULT_REFRESH_HINT, TrustBundle
from agent.spiffe import TrustDomain
from agent.validation import ValidationError, check_x509_authority

if TYPE_CHECKING:
    from datetime import datetime

    from agent.keys import PrivateKey

# Of the life of an authority. SVIDs may live as long as this last part, so that one that is signed
# at its beginning is not cut short (the configuration holds SVIDs to a sixth of the authority).
LAST_PART = 6
# An authority that was made further in the future than this was made by a wrong clock, and peers
# would refuse all that it signs; smaller steps back are a matter of course.
CLOCK_STEP = timedelta(minutes=1)


class Kind(StrEnum):
    """What an authority signs."""

    X509 = "x509"
    JWT = "jwt"


class State(StrEnum):
    """Where an authority stands; see the table above."""

    ACTIVE = "active"
    RETIRED = "retired"


@dataclass(frozen=True, slots=True, kw_only=True)
class X509Authority:
    """A key that signs X.509-SVIDs, with its self-signed certificate.

    Raises:
        ValueError: the key is not the certificate's.
    """

    state: State
    certificate: x509.Certificate
    key: PrivateKey

    def __post_init__(self) -> None:
        if self.certificate.public_key() != self.key.public_key():
            raise ValueError("the key of an X.509 authority does not belong to its certificate")

    @property
    def not_before(self) -> datetime:
        """When its life begins."""
        return self.certificate.not_valid_before_utc

    @property
    def not_after(self) -> datetime:
        """When its life ends."""
        return self.certificate.not_valid_after_utc


@dataclass(frozen=True, slots=True, kw_only=True)
class JwtAuthority:
    """A key that signs JWT-SVIDs; `kid` is its name in the bundle.

    Raises:
        ValueError: its life ends before it begins.
    """

    state: State
    kid: str
    key: PrivateKey
    not_before: datetime
    not_after: datetime

    def __post_init__(self) -> None:
        if self.not_before >= self.not_after:
            raise ValueError("the life of a JWT authority ends before it begins")


_Authority = TypeVar("_Authority", bound=X509Authority | JwtAuthority)


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthoritySet:
    """All authorities of a trust domain, oldest first. `sequence` is that of its bundle.

    Raises:
        ValueError: there is not exactly one active authority of each kind, two share a key ID or a
            certificate, or a certificate is not one of an authority of this trust domain.
    """

    trust_domain: TrustDomain
    sequence: int
    x509: tuple[X509Authority, ...]
    jwt: tuple[JwtAuthority, ...]

    def __post_init__(self) -> None:
        _check_one_active(self.x509, Kind.X509)
        _check_one_active(self.jwt, Kind.JWT)
        if len({a.kid for a in self.jwt}) < len(self.jwt):
            raise ValueError("two JWT authorities have the same key ID")
        if len({a.certificate for a in self.x509}) < len(self.x509):
            raise ValueError("two X.509 authorities have the same certificate")
        for authority in self.x509:
            try:
                check_x509_authority(authority.certificate, self.trust_domain)
            except ValidationError as error:
                raise ValueError(f"an X.509 authority cannot be used: {error}") from None
        self.bundle()  # which has rules of its own, for the sequence and the key IDs

    @property
    def active_x509(self) -> X509Authority:
        """The authority that signs X.509-SVIDs."""
        return _active(self.x509)

    @property
    def active_jwt(self) -> JwtAuthority:
        """The authority that signs JWT-SVIDs."""
        return _active(self.jwt)

    def bundle(self) -> TrustBundle:
        """All authorities as the world may see them."""
        return TrustBundle(
            trust_domain=self.trust_domain,
            x509_authorities=tuple(a.certificate for a in self.x509),
            jwt_authorities={a.kid: a.key.public_key() for a in self.jwt},
            sequence=self.sequence,
            refresh_hint=DEFAULT_REFRESH_HINT,
        )

    def to_json(self) -> bytes:
        """The form to store. It holds the private keys, unencrypted."""
        document = _Document(
            version=1,
            trust_domain=self.trust_domain.name,
            sequence=self.sequence,
            x509=[_StoredX509.of(a) for a in self.x509],
            jwt=[_StoredJwt.of(a) for a in self.jwt],
        )
        return document.model_dump_json(indent=2).encode() + b"\n"

    @classmethod
    def parse(cls, data: bytes, trust_domain: TrustDomain) -> AuthoritySet:
        """Read what `to_json` wrote, for the trust domain that the configuration names.

        Raises:
            ValueError: it is damaged, of another version, or of another trust domain. The message
                holds nothing of the data but the name of that trust domain.
        """
        document = _read(data)
        stored = TrustDomain(document.trust_domain)
        if stored != trust_domain:
            raise ValueError(f"it is of trust domain {stored}, not of {trust_domain}")
        return cls(
            trust_domain=trust_domain,
            sequence=document.sequence,
            x509=tuple(a.load() for a in document.x509),
            jwt=tuple(a.load() for a in document.jwt),
        )


def due(authorities: AuthoritySet, now: datetime) -> frozenset[Kind]:
    """Which kinds need a successor: little of the active one's life is left, or none has begun."""
    active: dict[Kind, X509Authority | JwtAuthority] = {
        Kind.X509: authorities.active_x509,
        Kind.JWT: authorities.active_jwt,
    }
    return frozenset(kind for kind, authority in active.items() if _ends_soon(authority, now))


def succeed(
    authorities: AuthoritySet, successor: X509Authority | JwtAuthority, now: datetime
) -> AuthoritySet:
    """Make `successor` the active authority of its kind and retire the former one.

    Retired authorities of both kinds whose life has ended leave, and the sequence goes up by one.

    Raises:
        ValueError: the successor's own life has ended, or it breaks a rule of `AuthoritySet`.
    """
    if successor.not_after <= now:
        raise ValueError("the life of the successor has already ended")
    x509_authorities, jwt_authorities = authorities.x509, authorities.jwt
    if isinstance(successor, X509Authority):
        x509_authorities = _hand_over(x509_authorities, successor)
    else:
        jwt_authorities = _hand_over(jwt_authorities, successor)
    return replace(
        authorities,
        sequence=authorities.sequence + 1,
        x509=_without_ended(x509_authorities, now),
        jwt=_without_ended(jwt_authorities, now),
    )


def _active(authorities: tuple[_Authority, ...]) -> _Authority:
    return next(a for a in authorities if a.state is State.ACTIVE)


def _check_one_active(authorities: tuple[_Authority, ...], kind: Kind) -> None:
    count = sum(a.state is State.ACTIVE for a in authorities)
    if count != 1:
        raise ValueError(f"there are {count} active {kind} authorities instead of exactly one")


def _ends_soon(authority: X509Authority | JwtAuthority, now: datetime) -> bool:
    if now < authority.not_before - CLOCK_STEP:
        return True
    life = authority.not_after - authority.not_before
    return authority.not_after - now < life / LAST_PART


def _hand_over(
    authorities: tuple[_Authority, ...], successor: _Authority
) -> tuple[_Authority, ...]:
    former = tuple(replace(a, state=State.RETIRED) for a in authorities)
    return (*former, replace(successor, state=State.ACTIVE))


def _without_ended(authorities: tuple[_Authority, ...], now: datetime) -> tuple[_Authority, ...]:
    # A certificate is valid up to and including its last second (RFC 5280 section 4.1.2.5).
    return tuple(a for a in authorities if a.state is State.ACTIVE or a.not_after >= now)


# --- the stored form -----------------------------------------------------------------------------


class _Stored(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)


class _StoredX509(_Stored):
    state: State
    certificate: str
    private_key: str

    @classmethod
    def of(cls, authority: X509Authority) -> _StoredX509:
        return cls(
            state=authority.state,
            certificate=authority.certificate.public_bytes(Encoding.PEM).decode(),
            private_key=keys.to_pem(authority.key).decode(),
        )

    def load(self) -> X509Authority:
        try:
            certificate = x509.load_pem_x509_certificate(self.certificate.encode())
            certificate.verify_directly_issued_by(certificate)
        except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
            raise ValueError("the certificate of an X.509 authority is damaged") from None
        key = keys.load_pem(self.private_key.encode())
        return X509Authority(state=self.state, certificate=certificate, key=key)


class _StoredJwt(_Stored):
    state: State
    kid: str
    private_key: str
    not_before: pydantic.AwareDatetime
    not_after: pydantic.AwareDatetime

    @classmethod
    def of(cls, authority: JwtAuthority) -> _StoredJwt:
        return cls(
            state=authority.state,
            kid=authority.kid,
            private_key=keys.to_pem(authority.key).decode(),
            not_before=authority.not_before,
            not_after=authority.not_after,
        )

    def load(self) -> JwtAuthority:
        return JwtAuthority(
            state=self.state,
            kid=self.kid,
            key=keys.load_pem(self.private_key.encode()),
            not_before=self.not_before,
            not_after=self.not_after,
        )


class _Document(_Stored):
    version: Literal[1]
    trust_domain: str
    sequence: Annotated[int, pydantic.Field(ge=1, strict=True)]
    x509: list[_StoredX509]
    jwt: list[_StoredJwt]


def _read(data: bytes) -> _Document:
    try:
        return _Document.model_validate_json(data)
    except pydantic.ValidationError as error:
        first = error.errors(include_input=False)[0]
        # The name of an unknown member is data too; and pydantic's own message, which quotes its
        # input, is not chained.
        known = first["loc"][:-1] if first["type"] == "extra_forbidden" else first["loc"]
        place = ".".join(map(str, known)) or "document"
        raise ValueError(f"{place}: {first['msg']}") from None
