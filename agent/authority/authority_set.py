"""The authorities of a trust domain: their properties, their states, and their form on disk.

`agent.authority.rotation` has the transitions between states. The form on disk holds private keys,
so that no message quotes any of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

import pydantic
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding

from agent.spiffe import keys
from agent.spiffe.bundle import DEFAULT_REFRESH_HINT, TrustBundle
from agent.spiffe.ids import TrustDomain
from agent.spiffe.x509_rules import ValidationError, check_x509_authority

if TYPE_CHECKING:
    from datetime import datetime

    from agent.spiffe.keys import PrivateKey


class AuthorityKind(StrEnum):
    """The kind of SVID that an authority signs."""

    X509 = "x509"
    JWT = "jwt"


class State(StrEnum):
    """The state of an authority; see the table in `agent.authority.rotation`."""

    PREPARED = "prepared"
    ACTIVE = "active"
    RETIRED = "retired"
    TAINTED = "tainted"


@dataclass(frozen=True, slots=True, kw_only=True)
class X509Authority:
    """A key that signs X.509-SVIDs, with its self-signed certificate.

    `since` is the time of the last change of state.

    Raises:
        ValueError: the key is not the certificate's.
    """

    state: State
    since: datetime
    certificate: x509.Certificate
    key: PrivateKey

    def __post_init__(self) -> None:
        if self.certificate.public_key() != self.key.public_key():
            raise ValueError("the key of an X.509 authority is not its certificate's")

    @property
    def kind(self) -> AuthorityKind:
        """X509."""
        return AuthorityKind.X509

    @property
    def id(self) -> str:
        """The subject key identifier in hexadecimal: the issuer's mark in each SVID it signed."""
        extensions = self.certificate.extensions
        return extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest.hex()

    @property
    def not_before(self) -> datetime:
        """When the lifetime begins."""
        return self.certificate.not_valid_before_utc

    @property
    def not_after(self) -> datetime:
        """When the lifetime ends."""
        return self.certificate.not_valid_after_utc


@dataclass(frozen=True, slots=True, kw_only=True)
class JwtAuthority:
    """A key that signs JWT-SVIDs. `kid` is its key ID in the bundle.

    `since` is the time of the last change of state.

    Raises:
        ValueError: the lifetime ends before it begins.
    """

    state: State
    since: datetime
    kid: str
    key: PrivateKey
    not_before: datetime
    not_after: datetime

    def __post_init__(self) -> None:
        if self.not_before >= self.not_after:
            raise ValueError("the lifetime of a JWT authority ends before it begins")

    @property
    def kind(self) -> AuthorityKind:
        """JWT."""
        return AuthorityKind.JWT

    @property
    def id(self) -> str:
        """The key ID."""
        return self.kid


Authority: TypeAlias = X509Authority | JwtAuthority


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthoritySet:
    """All authorities of a trust domain, oldest first.

    `sequence` is the bundle's. `longest_svid` is the longest lifetime of any SVID they signed.

    Raises:
        ValueError: a kind has not exactly one active authority or has two prepared ones, two
            authorities share a key ID or a certificate, or a certificate is not an authority's of
            this trust domain.
    """

    trust_domain: TrustDomain
    sequence: int
    longest_svid: timedelta
    x509: tuple[X509Authority, ...]
    jwt: tuple[JwtAuthority, ...]

    def __post_init__(self) -> None:
        _check_states(self.x509, AuthorityKind.X509)
        _check_states(self.jwt, AuthorityKind.JWT)
        if len({a.kid for a in self.jwt}) < len(self.jwt):
            raise ValueError("two JWT authorities have the same key ID")
        if len({a.certificate for a in self.x509}) < len(self.x509):
            raise ValueError("two X.509 authorities have the same certificate")
        for authority in self.x509:
            try:
                check_x509_authority(authority.certificate, self.trust_domain)
            except ValidationError as error:
                raise ValueError(f"an X.509 authority cannot be used: {error}") from None
        self.bundle()  # checks the sequence and the key IDs

    @property
    def active_x509(self) -> X509Authority:
        """The authority that signs X.509-SVIDs."""
        return next(a for a in self.x509 if a.state is State.ACTIVE)

    @property
    def active_jwt(self) -> JwtAuthority:
        """The authority that signs JWT-SVIDs."""
        return next(a for a in self.jwt if a.state is State.ACTIVE)

    def of(self, kind: AuthorityKind) -> tuple[Authority, ...]:
        """The authorities of one kind."""
        return self.x509 if kind is AuthorityKind.X509 else self.jwt

    @property
    def all(self) -> tuple[Authority, ...]:
        """The authorities of both kinds."""
        return (*self.x509, *self.jwt)

    def bundle(self) -> TrustBundle:
        """The public keys of all authorities."""
        return TrustBundle(
            trust_domain=self.trust_domain,
            x509_authorities=tuple(a.certificate for a in self.x509),
            jwt_authorities={a.kid: a.key.public_key() for a in self.jwt},
            sequence=self.sequence,
            refresh_hint=DEFAULT_REFRESH_HINT,
        )

    def to_json(self) -> bytes:
        """The form on disk, with the private keys, unencrypted."""
        document = _Document(
            version=2,
            trust_domain=self.trust_domain.name,
            sequence=self.sequence,
            longest_svid=self.longest_svid,
            x509=[_StoredX509.of(a) for a in self.x509],
            jwt=[_StoredJwt.of(a) for a in self.jwt],
        )
        return document.model_dump_json(indent=2).encode() + b"\n"

    @classmethod
    def parse(cls, data: bytes, trust_domain: TrustDomain) -> AuthoritySet:
        """Read the result of `to_json`, for the trust domain of the configuration.

        Raises:
            ValueError: the data is damaged, of another version, or of another trust domain. The
                message quotes none of the data but the name of that trust domain.
        """
        document = _read(data)
        stored = TrustDomain(document.trust_domain)
        if stored != trust_domain:
            raise ValueError(f"it belongs to trust domain {stored}, not to {trust_domain}")
        return cls(
            trust_domain=trust_domain,
            sequence=document.sequence,
            longest_svid=document.longest_svid,
            x509=tuple(a.load() for a in document.x509),
            jwt=tuple(a.load() for a in document.jwt),
        )


def _check_states(authorities: tuple[Authority, ...], kind: AuthorityKind) -> None:
    active = sum(a.state is State.ACTIVE for a in authorities)
    if active != 1:
        raise ValueError(f"there are {active} active {kind} authorities instead of exactly one")
    if sum(a.state is State.PREPARED for a in authorities) > 1:
        raise ValueError(
            f"a successor of the {kind} authority is prepared already: activate or taint it"
        )


# --- the form on disk ----------------------------------------------------------------------------


class _Stored(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)


class _StoredX509(_Stored):
    state: State
    since: pydantic.AwareDatetime
    certificate: str
    private_key: str

    @classmethod
    def of(cls, authority: X509Authority) -> _StoredX509:
        return cls(
            state=authority.state,
            since=authority.since,
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
        return X509Authority(state=self.state, since=self.since, certificate=certificate, key=key)


class _StoredJwt(_Stored):
    state: State
    since: pydantic.AwareDatetime
    kid: str
    private_key: str
    not_before: pydantic.AwareDatetime
    not_after: pydantic.AwareDatetime

    @classmethod
    def of(cls, authority: JwtAuthority) -> _StoredJwt:
        return cls(
            state=authority.state,
            since=authority.since,
            kid=authority.kid,
            private_key=keys.to_pem(authority.key).decode(),
            not_before=authority.not_before,
            not_after=authority.not_after,
        )

    def load(self) -> JwtAuthority:
        return JwtAuthority(
            state=self.state,
            since=self.since,
            kid=self.kid,
            key=keys.load_pem(self.private_key.encode()),
            not_before=self.not_before,
            not_after=self.not_after,
        )


class _Document(_Stored):
    version: Literal[2]
    trust_domain: str
    sequence: Annotated[int, pydantic.Field(ge=1, strict=True)]
    longest_svid: timedelta
    x509: list[_StoredX509]
    jwt: list[_StoredJwt]


def _read(data: bytes) -> _Document:
    try:
        return _Document.model_validate_json(data)
    except pydantic.ValidationError as error:
        first = error.errors(include_input=False)[0]
        # The name of an unknown member is data too. The message of pydantic quotes its input, so
        # that it is not chained.
        known = first["loc"][:-1] if first["type"] == "extra_forbidden" else first["loc"]
        place = ".".join(map(str, known)) or "document"
        raise ValueError(f"{place}: {first['msg']}") from None
