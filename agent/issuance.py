"""What vouchd signs: the exact profiles of its certificates and tokens.

Nothing is signed that was not checked. A certificate or token is first built in full and signed
with a throw-away key; that draft is parsed back and judged by the same rules as a stranger's
(`agent.validation`) and by our own stricter profile. What passed is handed out as a one-shot
`Prepared`, and only the issuer that made it can turn it into the real thing, whose signed bytes
must equal those of the draft. A fault in a template or a library thus costs a refused request, not
a bad certificate in the world.

Keys come from the caller and stay there: nothing here stores, loads or rotates them.
"""

from __future__ import annotations

import secrets
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

import jwt
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from agent import keys
from agent.bundle import DEFAULT_REFRESH_HINT, TrustBundle
from agent.errors import AuthorityError
from agent.validation import (
    ValidationError,
    check_x509_authority,
    check_x509_svid,
    validate_jwt_svid,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent.keys import PrivateKey, PublicKey
    from agent.spiffe import SpiffeId, TrustDomain

# For hosts whose clocks are a little behind ours.
BACKDATE = timedelta(seconds=10)
# SVIDs are renewed at half their life and times are whole seconds, so that a shorter one could
# expire before its successor is there. It happens only next to the end of an authority.
MIN_LIFE = timedelta(seconds=2)

# IC-15: the standard allows an empty subject, logs of TLS stacks do not profit from one.
_ORGANIZATION = x509.NameAttribute(NameOID.ORGANIZATION_NAME, "vouchd")
# RFC 5280 appendix A, ub-common-name; DNS names can be longer.
_MAX_COMMON_NAME = 64

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


@dataclass(frozen=True, slots=True, kw_only=True)
class X509SvidRequest:
    """An X509-SVID to be made. It ends after `ttl`, at `not_after_limit` or with its authority."""

    spiffe_id: SpiffeId
    public_key: PublicKey
    ttl: timedelta
    dns_names: tuple[str, ...] = ()
    not_after_limit: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class JwtSvidRequest:
    """A JWT-SVID to be made. It ends after `ttl`, at `not_after_limit` or with its authority."""

    spiffe_id: SpiffeId
    audience: tuple[str, ...]
    ttl: timedelta
    not_after_limit: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class JwtSvid:
    """An issued JWT-SVID; times are whole seconds."""

    token: str
    spiffe_id: SpiffeId
    kid: str
    issued_at: datetime
    expires_at: datetime


# --- certificates ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Template:
    """All that will be signed of a certificate. Extensions are pairs of value and criticality."""

    serial: int
    subject: x509.Name
    issuer: x509.Name
    public_key: PublicKey
    not_before: datetime
    not_after: datetime
    extensions: tuple[tuple[x509.ExtensionType, bool], ...]

    def sign(self, key: PrivateKey) -> x509.Certificate:
        builder = x509.CertificateBuilder(
            self.issuer,
            self.subject,
            self.public_key,
            self.serial,
            self.not_before,
            self.not_after,
        )
        for value, critical in self.extensions:
            builder = builder.add_extension(value, critical)
        return builder.sign(key, keys.signature_hash(key.public_key()))

    def check(self, draft: x509.Certificate) -> None:
        """Compare with what was parsed back: nothing lost, nothing altered, nothing added."""
        found = _Template(
            serial=draft.serial_number,
            subject=draft.subject,
            issuer=draft.issuer,
            public_key=keys.check_public(draft.public_key()),
            not_before=draft.not_valid_before_utc,
            not_after=draft.not_valid_after_utc,
            extensions=tuple((e.value, e.critical) for e in draft.extensions),
        )
        if found != self:
            raise ValueError("the encoded certificate differs from its template")


@dataclass(frozen=True, slots=True, kw_only=True)
class _X509Draft:
    template: _Template
    signed_bytes: bytes

    def sign(self, key: PrivateKey) -> x509.Certificate:
        certificate = self.template.sign(key)
        if certificate.tbs_certificate_bytes != self.signed_bytes:
            raise IssuanceError("the signed certificate differs from the draft that was checked")
        return certificate


PreparedX509Svid: TypeAlias = Prepared[_X509Draft]


def create_x509_authority(
    trust_domain: TrustDomain, key: PrivateKey, *, now: datetime, ttl: timedelta
) -> x509.Certificate:
    """Make the self-signed certificate of a new X.509 authority.

    Takes as long as `keys.generate`: the draft needs a key of its own.

    Raises:
        IssuanceError: the key is not acceptable, or `ttl` is too short.
    """
    with _refusal(f"an authority of {trust_domain}"):
        template = _authority_template(trust_domain, key.public_key(), now, ttl)
        draft = template.sign(_draft_key(key))
        template.check(draft)
        check_x509_authority(draft, trust_domain)
    return _X509Draft(template=template, signed_bytes=draft.tbs_certificate_bytes).sign(key)


class X509Issuer:
    """Signs X.509-SVIDs of one trust domain with one authority.

    Constructing one takes as long as `keys.generate`, for the key of the drafts.

    Raises:
        IssuanceError: the certificate is not that of an authority of this trust domain, or the key
            is not its key.
    """

    def __init__(
        self, certificate: x509.Certificate, key: PrivateKey, trust_domain: TrustDomain
    ) -> None:
        with _refusal(f"for {trust_domain} with this authority"):
            check_x509_authority(certificate, trust_domain)
            if certificate.public_key() != key.public_key():
                raise ValueError("its key and its certificate do not belong together")
        self._certificate = certificate
        self._key = key
        self._trust_domain = trust_domain
        self._draft_key = _draft_key(key)

    def prepare(self, request: X509SvidRequest, now: datetime) -> PreparedX509Svid:
        """Build and check an X.509-SVID without signing it.

        Raises:
            IssuanceError: it may not be signed; the message says why.
        """
        with _refusal(f"an X.509-SVID for {request.spiffe_id}"):
            _check_member(request.spiffe_id, self._trust_domain)
            template = _leaf_template(request, self._certificate, now)
            draft = template.sign(self._draft_key)
            template.check(draft)
            if check_x509_svid(draft) != request.spiffe_id:
                raise ValueError("it holds another SPIFFE ID than the requested one")
        signed_bytes = draft.tbs_certificate_bytes
        return Prepared(self, _X509Draft(template=template, signed_bytes=signed_bytes))

    def issue(self, prepared: PreparedX509Svid) -> x509.Certificate:
        """Sign what `prepare` of this very issuer returned; it works once.

        Raises:
            IssuanceError: it was issued before, is another issuer's, or came out different.
        """
        return prepared.redeem(self).sign(self._key)


def _authority_template(
    trust_domain: TrustDomain, key: PublicKey, now: datetime, ttl: timedelta
) -> _Template:
    start, end = _life(now, ttl)
    serial = _new_serial()
    # Each generation has its own name, so that path building is never in doubt (IC-16).
    number = x509.NameAttribute(NameOID.SERIAL_NUMBER, str(serial))
    name = x509.Name([_ORGANIZATION, number])
    return _Template(
        serial=serial,
        subject=name,
        issuer=name,
        public_key=keys.check_public(key),
        not_before=start - BACKDATE,
        not_after=end,
        extensions=(
            (x509.BasicConstraints(ca=True, path_length=None), True),
            (_key_usage("key_cert_sign", "crl_sign"), True),
            (x509.SubjectAlternativeName([x509.UniformResourceIdentifier(trust_domain.id)]), False),
            (x509.SubjectKeyIdentifier.from_public_key(key), False),
        ),
    )


def _leaf_template(
    request: X509SvidRequest, authority: x509.Certificate, now: datetime
) -> _Template:
    start, end = _life(now, request.ttl, authority.not_valid_after_utc, request.not_after_limit)
    authority_id = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return _Template(
        serial=_new_serial(),
        subject=_leaf_subject(request.dns_names),
        issuer=authority.subject,
        public_key=keys.check_public(request.public_key),
        not_before=start - BACKDATE,
        not_after=end,
        extensions=(
            (x509.BasicConstraints(ca=False, path_length=None), True),
            # Cipher suites with forward secrecy only ever sign with this key; keyAgreement and
            # keyEncipherment would allow the static exchanges that TLS 1.3 dropped.
            (_key_usage("digital_signature"), True),
            (
                x509.ExtendedKeyUsage(
                    [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
                ),
                False,
            ),
            (_leaf_names(request), False),
            (x509.SubjectKeyIdentifier.from_public_key(request.public_key), False),
            (
                x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(authority_id),
                False,
            ),
        ),
    )


def _leaf_names(request: X509SvidRequest) -> x509.SubjectAlternativeName:
    uri = x509.UniformResourceIdentifier(str(request.spiffe_id))
    return x509.SubjectAlternativeName([uri, *map(x509.DNSName, request.dns_names)])


def _leaf_subject(dns_names: tuple[str, ...]) -> x509.Name:
    """The first DNS name is the common name, for software that shows nothing else."""
    names = [
        x509.NameAttribute(NameOID.COMMON_NAME, name)
        for name in dns_names[:1]
        if len(name) <= _MAX_COMMON_NAME
    ]
    return x509.Name([_ORGANIZATION, *names])


def _key_usage(*allowed: str) -> x509.KeyUsage:
    bits = (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    )
    return x509.KeyUsage(**{bit: bit in allowed for bit in bits})


def _new_serial() -> int:
    """127 random bits: positive and unpredictable (RFC 5280 section 4.1.2.2).

    With the 128th bit DER would need a 17th octet now and then, which some software shows badly.
    """
    return secrets.randbelow(2**127 - 1) + 1


# --- tokens ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _JwtDraft:
    spiffe_id: SpiffeId
    claims: dict[str, Any]
    signed_text: str


PreparedJwtSvid: TypeAlias = Prepared[_JwtDraft]


class JwtIssuer:
    """Signs JWT-SVIDs of one trust domain with one authority, whose life ends at `not_after`.

    Constructing one takes as long as `keys.generate`, for the key of the drafts.
    """

    def __init__(
        self, kid: str, key: PrivateKey, not_after: datetime, trust_domain: TrustDomain
    ) -> None:
        self._key = key
        self._not_after = not_after
        self._trust_domain = trust_domain
        self._header = {"kid": kid, "typ": "JWT", "alg": keys.jws_algorithms(key.public_key())[0]}
        self._draft_key = _draft_key(key)
        self._draft_bundle = TrustBundle(
            trust_domain=trust_domain,
            x509_authorities=(),
            jwt_authorities={kid: self._draft_key.public_key()},
            sequence=0,
            refresh_hint=DEFAULT_REFRESH_HINT,
        )

    def prepare(self, request: JwtSvidRequest, now: datetime) -> PreparedJwtSvid:
        """Build and check a JWT-SVID without signing it.

        Raises:
            IssuanceError: it may not be signed; the message says why.
        """
        with _refusal(f"a JWT-SVID for {request.spiffe_id}"):
            _check_member(request.spiffe_id, self._trust_domain)
            claims = _claims(request, self._not_after, now)
            draft = self._sign(claims, self._draft_key)
            self._check(draft, claims, now)
        return Prepared(
            self,
            _JwtDraft(spiffe_id=request.spiffe_id, claims=claims, signed_text=_signed_text(draft)),
        )

    def issue(self, prepared: PreparedJwtSvid) -> JwtSvid:
        """Sign what `prepare` of this very issuer returned; it works once.

        Raises:
            IssuanceError: it was issued before, is another issuer's, or came out different.
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
    """A key ID that is never used twice: 128 random bits."""
    return secrets.token_hex(16)


def _claims(request: JwtSvidRequest, not_after: datetime, now: datetime) -> dict[str, Any]:
    start, end = _life(now, request.ttl, not_after, request.not_after_limit)
    # In the requested order, without repetition, and a list even if it is one (IC-22, Q-11).
    audience = list(dict.fromkeys(request.audience))
    if not audience or not all(value.strip() for value in audience):
        raise ValueError("it needs an audience, and none of its audiences may be blank (JW-09)")
    return {
        "sub": str(request.spiffe_id),
        "aud": audience,
        "exp": int(end.timestamp()),
        "iat": int(start.timestamp()),
    }


def _signed_text(token: str) -> str:
    return token.rpartition(".")[0]


# --- both --------------------------------------------------------------------------------------


@contextmanager
def _refusal(what: str) -> Iterator[None]:
    """Turn any broken rule into an IssuanceError that names what will not be signed."""
    try:
        yield
    except (ValueError, ValidationError) as error:
        raise IssuanceError(f"refusing to sign {what}: {error}") from None


def _check_member(spiffe_id: SpiffeId, trust_domain: TrustDomain) -> None:
    if spiffe_id.trust_domain != trust_domain:
        raise ValueError(f"it is not of trust domain {trust_domain} (SV-08)")


def _life(now: datetime, ttl: timedelta, *limits: datetime | None) -> tuple[datetime, datetime]:
    """Start and end in whole seconds; the end is the earliest of the TTL and the limits."""
    start = now.replace(microsecond=0)
    ends = [start + ttl, *(limit for limit in limits if limit is not None)]
    end = min(ends).replace(microsecond=0)
    if end - start < MIN_LIFE:
        raise ValueError(
            f"it would live less than {MIN_LIFE.seconds} seconds, because of its TTL, of the end of"
            f" its entry, or of the end of its authority ({end:%Y-%m-%dT%H:%M:%SZ})"
        )
    return start, end


def _draft_key(key: PrivateKey) -> PrivateKey:
    """A throw-away key whose signatures name the same algorithm.

    For RSA its size does not show in what is signed, so the quickest one does.
    """
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return ec.generate_private_key(key.curve)
    return keys.generate(keys.KeyType.RSA_2048)
