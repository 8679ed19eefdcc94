"""The exact profile of our certificates, and who signs them; see agent.authority.issuance."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from agent.authority.issuance import IssuanceError, Prepared, check_member, draft_key, life, refusal
from agent.spiffe import keys
from agent.spiffe.lifetimes import BACKDATE
from agent.spiffe.x509_rules import check_x509_authority, check_x509_svid

if TYPE_CHECKING:
    from datetime import datetime, timedelta

    from agent.spiffe.ids import SpiffeId, TrustDomain
    from agent.spiffe.keys import PrivateKey, PublicKey

# IC-15: the standard allows an empty subject, logs of TLS stacks do not profit from one.
_ORGANIZATION = x509.NameAttribute(NameOID.ORGANIZATION_NAME, "vouchd")
# RFC 5280 appendix A, ub-common-name; DNS names can be longer.
_MAX_COMMON_NAME = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class X509SvidRequest:
    """An X509-SVID to be made. It ends after `ttl`, at `not_after_limit` or with its authority."""

    spiffe_id: SpiffeId
    public_key: PublicKey
    ttl: timedelta
    dns_names: tuple[str, ...] = ()
    not_after_limit: datetime | None = None


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
    with refusal(f"an authority of {trust_domain}"):
        template = _authority_template(trust_domain, key.public_key(), now, ttl)
        draft = template.sign(draft_key(key))
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
        with refusal(f"for {trust_domain} with this authority"):
            check_x509_authority(certificate, trust_domain)
            if certificate.public_key() != key.public_key():
                raise ValueError("its key and its certificate do not belong together")
        self._certificate = certificate
        self._key = key
        self._trust_domain = trust_domain
        self._draft_key = draft_key(key)

    def prepare(self, request: X509SvidRequest, now: datetime) -> PreparedX509Svid:
        """Build and check an X.509-SVID without signing it.

        Raises:
            IssuanceError: it may not be signed; the message says why.
        """
        with refusal(f"an X.509-SVID for {request.spiffe_id}"):
            check_member(request.spiffe_id, self._trust_domain)
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
    start, end = life(now, ttl)
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
    start, end = life(now, request.ttl, authority.not_valid_after_utc, request.not_after_limit)
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
