"""The profile of our certificates: every field of an authority's certificate and of a leaf's."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from agent.authority.issuance import lifetime
from agent.spiffe import keys
from agent.spiffe.lifetimes import BACKDATE

if TYPE_CHECKING:
    from datetime import datetime, timedelta

    from agent.spiffe.ids import SpiffeId, TrustDomain
    from agent.spiffe.keys import PrivateKey, PublicKey

# X509-SVID section 3.1 allows an empty subject; the logs of many TLS stacks show nothing else.
_ORGANIZATION = x509.NameAttribute(NameOID.ORGANIZATION_NAME, "vouchd")
# RFC 5280 appendix A, ub-common-name. DNS names can be longer.
_MAX_COMMON_NAME = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class X509SvidRequest:
    """A request for an X.509-SVID.

    The SVID ends after `ttl`, at `not_after_limit` or with its authority, whatever is first.
    """

    spiffe_id: SpiffeId
    public_key: PublicKey
    ttl: timedelta
    dns_names: tuple[str, ...] = ()
    not_after_limit: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class X509Template:
    """All signed content of a certificate. Extensions are pairs of value and criticality."""

    serial: int
    subject: x509.Name
    issuer: x509.Name
    public_key: PublicKey
    not_before: datetime
    not_after: datetime
    extensions: tuple[tuple[x509.ExtensionType, bool], ...]

    def sign(self, key: PrivateKey) -> x509.Certificate:
        """Encode and sign the content."""
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
        """Compare the content with a parsed certificate: nothing lost, altered or added.

        Raises:
            ValueError: they differ.
        """
        found = replace(
            self,
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


def authority_template(
    trust_domain: TrustDomain, key: PublicKey, now: datetime, ttl: timedelta
) -> X509Template:
    """The certificate of a new authority of a trust domain.

    Raises:
        ValueError: the key is not acceptable, or `ttl` is too short.
    """
    begin, end = lifetime(now, ttl)
    serial = _new_serial()
    # Each authority has its own name, so that a verifier never has two candidates for an issuer.
    number = x509.NameAttribute(NameOID.SERIAL_NUMBER, str(serial))
    name = x509.Name([_ORGANIZATION, number])
    return X509Template(
        serial=serial,
        subject=name,
        issuer=name,
        public_key=keys.check_public(key),
        not_before=begin - BACKDATE,
        not_after=end,
        extensions=(
            (x509.BasicConstraints(ca=True, path_length=None), True),
            (_key_usage("key_cert_sign", "crl_sign"), True),
            (x509.SubjectAlternativeName([x509.UniformResourceIdentifier(trust_domain.id)]), False),
            (x509.SubjectKeyIdentifier.from_public_key(key), False),
        ),
    )


def leaf_template(
    request: X509SvidRequest, authority: x509.Certificate, now: datetime
) -> X509Template:
    """The certificate of an X.509-SVID.

    Raises:
        ValueError: the key or a DNS name is not acceptable, or the lifetime is too short.
    """
    begin, end = lifetime(now, request.ttl, authority.not_valid_after_utc, request.not_after_limit)
    return X509Template(
        serial=_new_serial(),
        subject=_leaf_subject(request.dns_names),
        issuer=authority.subject,
        public_key=keys.check_public(request.public_key),
        not_before=begin - BACKDATE,
        not_after=end,
        extensions=_leaf_extensions(request, authority),
    )


def _leaf_extensions(
    request: X509SvidRequest, authority: x509.Certificate
) -> tuple[tuple[x509.ExtensionType, bool], ...]:
    purposes = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    uri = x509.UniformResourceIdentifier(str(request.spiffe_id))
    names = x509.SubjectAlternativeName([uri, *map(x509.DNSName, request.dns_names)])
    authority_id = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return (
        (x509.BasicConstraints(ca=False, path_length=None), True),
        # Cipher suites with forward secrecy only sign with this key. keyAgreement and
        # keyEncipherment would allow the static exchanges that TLS 1.3 removed.
        (_key_usage("digital_signature"), True),
        (x509.ExtendedKeyUsage(purposes), False),
        (names, False),
        (x509.SubjectKeyIdentifier.from_public_key(request.public_key), False),
        (x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(authority_id), False),
    )


def _leaf_subject(dns_names: tuple[str, ...]) -> x509.Name:
    """The first DNS name as common name, for software that shows nothing else."""
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

    A 128th bit would make DER add a 17th octet at times, which some software displays badly.
    """
    return secrets.randbelow(2**127 - 1) + 1
