"""A valid X509Update of the Workload API client, and its keys and certificates."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from agent.client.workload import ReceivedX509Svid, X509Update
from agent.spiffe import keys
from agent.spiffe.ids import TrustDomain

if TYPE_CHECKING:
    pass


NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
ID = "spiffe://example.org/me"
DOMAIN = TrustDomain("example.org")


def certificate(
    uri: str, key: keys.PrivateKey, issuer: x509.Certificate | None, issuer_key: keys.PrivateKey
) -> x509.Certificate:
    ca = issuer is None
    name = x509.Name.from_rfc4514_string("O=test")
    usages = dict.fromkeys(
        (
            "content_commitment",
            "key_encipherment",
            "data_encipherment",
            "key_agreement",
            "encipher_only",
            "decipher_only",
        ),
        False,
    )
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - timedelta(minutes=1))
        .not_valid_after(NOW + timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(
            x509.KeyUsage(**usages, digital_signature=not ca, key_cert_sign=ca, crl_sign=ca),
            critical=True,
        )
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), critical=False
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()),
            critical=False,
        )
    )
    if not ca:
        both = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = builder.add_extension(x509.ExtendedKeyUsage(both), critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


def der(*certificates: x509.Certificate) -> bytes:
    return b"".join(each.public_bytes(Encoding.DER) for each in certificates)


CA_KEY = keys.generate(keys.KeyType.EC_P256)
CA = certificate("spiffe://example.org", CA_KEY, None, CA_KEY)
OTHER_CA_KEY = keys.generate(keys.KeyType.EC_P256)
OTHER_CA = certificate("spiffe://example.org", OTHER_CA_KEY, None, OTHER_CA_KEY)
KEY = keys.generate(keys.KeyType.EC_P256)
LEAF = certificate(ID, KEY, CA, CA_KEY)

GOOD = ReceivedX509Svid(
    spiffe_id=ID,
    chain_der=der(LEAF),
    key_der=keys.to_pkcs8_der(KEY),
    bundle_der=der(CA, OTHER_CA),
    hint="h",
)
UPDATE = X509Update(svids=(GOOD,), federated_bundles={"spiffe://partner.example": der(OTHER_CA)})
