"""OpenSSL verifies the certificates of vouchd, and shows them as operators expect."""

from __future__ import annotations

import subprocess
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from agent.authority.x509_issuer import X509Issuer, create_x509_authority
from agent.authority.x509_template import X509SvidRequest
from agent.spiffe.keys import PrivateKey
from tests.vectors.pki.forge import DAY, ID, LEAF_KEY, NOW, TD, rsa_key

KEYS: dict[str, PrivateKey] = {
    "ec-p256": ec.generate_private_key(ec.SECP256R1()),
    "ec-p384": ec.generate_private_key(ec.SECP384R1()),
    "rsa-2048": rsa_key(2048),
    "rsa-4096": rsa_key(4096),
}
REQUEST = X509SvidRequest(
    spiffe_id=ID,
    public_key=LEAF_KEY.public_key(),
    ttl=timedelta(hours=1),
    dns_names=("a.example", "b.example"),
)


def issue(key: PrivateKey) -> tuple[x509.Certificate, x509.Certificate]:
    """An authority's certificate, and a leaf below it."""
    authority = create_x509_authority(TD, key, now=NOW, ttl=DAY)
    issuer = X509Issuer(authority, key, TD)
    return authority, issuer.issue(issuer.prepare(REQUEST, NOW))


@pytest.mark.parametrize("purpose", ["sslserver", "sslclient"])
@pytest.mark.parametrize("key", list(KEYS.values()), ids=list(KEYS))
def test_openssl_verifies_the_chain_for_servers_and_clients(
    key: PrivateKey, purpose: str, tmp_path: Path
) -> None:
    authority, leaf = issue(key)
    (tmp_path / "ca.pem").write_bytes(authority.public_bytes(Encoding.PEM))
    (tmp_path / "leaf.pem").write_bytes(leaf.public_bytes(Encoding.PEM))
    done = subprocess.run(
        [
            *("openssl", "verify", "-x509_strict", "-purpose", purpose),
            *("-attime", str(int(NOW.timestamp()))),
            *("-CAfile", str(tmp_path / "ca.pem"), str(tmp_path / "leaf.pem")),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_openssl_shows_the_names_and_the_subject_of_a_leaf() -> None:
    _, leaf = issue(KEYS["ec-p256"])
    shown = subprocess.run(
        ["openssl", "x509", "-noout", "-text"],
        input=leaf.public_bytes(Encoding.PEM),
        capture_output=True,
        check=True,
    ).stdout.decode()
    assert "URI:spiffe://example.org/payments/api, DNS:a.example, DNS:b.example" in shown
    assert "CA:FALSE" in shown
    assert "Subject: O = vouchd, CN = a.example" in shown
