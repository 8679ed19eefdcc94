"""Certificates with any content, also content that vouchd never signs.

Built with `cryptography` directly, so that a defect in `agent.authority.x509_template` cannot hide
itself in the tests of `agent.spiffe.x509_rules`.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import cache

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from agent.spiffe.bundle import TrustBundle
from agent.spiffe.ids import SpiffeId, TrustDomain
from agent.spiffe.keys import PrivateKey

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)
TD = TrustDomain("example.org")
ID = SpiffeId(TD, "/payments/api")
NAME = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "forged")])
CA_KEY = ec.generate_private_key(ec.SECP256R1())
LEAF_KEY = ec.generate_private_key(ec.SECP256R1())

Extension = tuple[x509.ExtensionType, bool]


@cache
def rsa_key(bits: int) -> rsa.RSAPrivateKey:
    """One key of each size in a test run, because RSA keys are slow to generate."""
    return rsa.generate_private_key(65537, bits)


def usage(*allowed: str) -> x509.KeyUsage:
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


def names(*uris: str, dns: tuple[str, ...] = ()) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName(
        [*map(x509.UniformResourceIdentifier, uris), *map(x509.DNSName, dns)]
    )


def _extensions(
    defaults: dict[str, Extension], changes: dict[str, Extension | None]
) -> list[Extension]:
    return [value for value in (defaults | changes).values() if value is not None]


def leaf(
    *,
    subject: x509.Name = NAME,
    key: PrivateKey = LEAF_KEY,
    signer: PrivateKey = CA_KEY,
    ends: datetime = NOW + DAY,
    **changes: Extension | None,
) -> x509.Certificate:
    """A valid leaf, with some of its extensions (bc, ku, eku, san, aki) replaced or left out."""
    server_and_client = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    defaults: dict[str, Extension] = {
        "bc": (x509.BasicConstraints(ca=False, path_length=None), True),
        "ku": (usage("digital_signature"), True),
        "eku": (x509.ExtendedKeyUsage(server_and_client), False),
        "san": (names(str(ID)), False),
        "aki": (
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()),
            False,
        ),
    }
    return _sign(subject, key, signer, ends, _extensions(defaults, changes))


def authority(
    *,
    key: PrivateKey = CA_KEY,
    signer: PrivateKey | None = None,
    ends: datetime = NOW + DAY,
    trust_domain: TrustDomain = TD,
    **changes: Extension | None,
) -> x509.Certificate:
    """A valid signing certificate, self-signed by default; see `leaf`."""
    signer = signer or key
    defaults: dict[str, Extension] = {
        "bc": (x509.BasicConstraints(ca=True, path_length=None), True),
        "ku": (usage("key_cert_sign", "crl_sign"), True),
        "san": (names(trust_domain.id), False),
        "ski": (x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False),
        "aki": (
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()),
            False,
        ),
    }
    return _sign(NAME, key, signer, ends, _extensions(defaults, changes))


def _sign(
    subject: x509.Name,
    key: PrivateKey,
    signer: PrivateKey,
    ends: datetime,
    extensions: list[Extension],
) -> x509.Certificate:
    builder = x509.CertificateBuilder(
        NAME, subject, key.public_key(), x509.random_serial_number(), NOW - DAY, ends
    )
    for value, critical in extensions:
        builder = builder.add_extension(value, critical)
    return builder.sign(signer, hashes.SHA256())


def bundle(
    *authorities: x509.Certificate, trust_domain: TrustDomain = TD, **jwt: PrivateKey
) -> TrustBundle:
    """A bundle with these certificates and JWT keys; the argument names are the key IDs."""
    return TrustBundle(
        trust_domain=trust_domain,
        x509_authorities=authorities,
        jwt_authorities={kid: key.public_key() for kid, key in jwt.items()},
        sequence=1,
        refresh_hint=timedelta(minutes=5),
    )
