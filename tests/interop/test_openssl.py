"""What OpenSSL says of the files that `vouchd fetch x509 --write` makes."""

from __future__ import annotations

import subprocess
from itertools import pairwise
from pathlib import Path

import pytest

from tests.interop.files import Workload
from tests.support.agent import TRUST_DOMAIN, RunningAgent

BILLING = f"spiffe://{TRUST_DOMAIN}/billing"


def openssl(*arguments: str | Path, fails: bool = False) -> str:
    done = subprocess.run(["openssl", *arguments], capture_output=True, text=True, check=False)
    assert (done.returncode != 0) is fails, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module", params=["ec-p256", "ec-p384", "rsa-2048"])
def files(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What billing got from an authority that has a key of this type."""
    return fetch_from_new_authority(tmp_path_factory, request.param)


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What billing got from an authority of the same trust domain and profile."""
    return fetch_from_new_authority(tmp_path_factory, "ec-p256")


def fetch_from_new_authority(factory: pytest.TempPathFactory, key_type: str) -> Path:
    billing = Workload.install("billing", factory.mktemp("billing"))
    agent = RunningAgent(
        f"entries:\n{billing.entry}", config=f"authority: {{key_type: {key_type}}}"
    )
    try:
        return billing.fetch(agent, factory.mktemp("files"))
    finally:
        agent.close()


@pytest.mark.parametrize("purpose", ["sslserver", "sslclient"])
def test_the_chain_is_good_for_servers_and_clients(files: Path, purpose: str) -> None:
    openssl("verify", *_strictly(files), "-purpose", purpose, files / "svid.0.pem")


def test_another_authority_of_the_same_name_does_not_verify_it(files: Path, others: Path) -> None:
    said = openssl("verify", *_strictly(others), files / "svid.0.pem", fails=True)
    assert "verification failed" in said


def test_the_certificate_is_what_the_standard_wants(files: Path) -> None:
    leaf = _extensions(files / "svid.0.pem")
    assert leaf["X509v3 Basic Constraints: critical"] == "CA:FALSE"
    usage = leaf["X509v3 Key Usage: critical"].split(", ")
    assert usage[0] == "Digital Signature"
    assert {"Certificate Sign", "CRL Sign"}.isdisjoint(usage)
    assert leaf["X509v3 Extended Key Usage:"] == (
        "TLS Web Server Authentication, TLS Web Client Authentication"
    )
    assert leaf["X509v3 Subject Alternative Name:"] == f"URI:{BILLING}"


def test_the_authority_is_one_of_our_trust_domain(files: Path) -> None:
    leaf, authority = _extensions(files / "svid.0.pem"), _extensions(files / "bundle.0.pem")
    assert authority["X509v3 Basic Constraints: critical"].startswith("CA:TRUE")
    assert "Certificate Sign" in authority["X509v3 Key Usage: critical"].split(", ")
    assert authority["X509v3 Subject Alternative Name:"] == f"URI:spiffe://{TRUST_DOMAIN}"
    assert leaf["X509v3 Authority Key Identifier:"] == authority["X509v3 Subject Key Identifier:"]


def test_the_key_is_the_certificates_and_private(files: Path) -> None:
    key = files / "svid.0.key"
    certified = openssl("x509", "-in", files / "svid.0.pem", "-noout", "-pubkey")
    assert openssl("pkey", "-in", key, "-pubout") == certified
    assert key.stat().st_mode & 0o777 == 0o600


def _strictly(files: Path) -> list[str | Path]:
    """Trust the bundle and nothing else; the chain after the leaf may help."""
    return [
        "-x509_strict",
        "-no-CApath",
        "-no-CAstore",
        *("-CAfile", files / "bundle.0.pem"),
        *("-untrusted", files / "svid.0.pem"),
    ]


def _extensions(certificate: Path) -> dict[str, str]:
    """Each extension's title, and criticality, with its text as `openssl x509 -text` has them."""
    text = openssl("x509", "-in", certificate, "-noout", "-text")
    lines = [line.strip() for line in text.splitlines()]
    return {line: following for line, following in pairwise(lines) if line.startswith("X509v3")}
