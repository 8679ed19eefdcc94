"""OpenSSL verifies the files that `vouchd fetch x509 --write` writes."""

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
    """The files of `billing`, issued by an authority with a key of this type."""
    return fetch_from_new_authority(tmp_path_factory, request.param)


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of `billing`, issued by another authority of the same trust domain."""
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
def test_chain_verifies_for_servers_and_clients(files: Path, purpose: str) -> None:
    openssl("verify", *_strictly(files), "-purpose", purpose, files / "svid.0.pem")


def test_svid_does_not_verify_with_another_authority_of_the_trust_domain(
    files: Path, others: Path
) -> None:
    output = openssl("verify", *_strictly(others), files / "svid.0.pem", fails=True)
    assert "verification failed" in output


def test_leaf_has_the_extensions_that_the_standard_requires(files: Path) -> None:
    leaf = _extensions(files / "svid.0.pem")
    assert leaf["X509v3 Basic Constraints: critical"] == "CA:FALSE"
    usage = leaf["X509v3 Key Usage: critical"].split(", ")
    assert usage[0] == "Digital Signature"
    assert {"Certificate Sign", "CRL Sign"}.isdisjoint(usage)
    assert leaf["X509v3 Extended Key Usage:"] == (
        "TLS Web Server Authentication, TLS Web Client Authentication"
    )
    assert leaf["X509v3 Subject Alternative Name:"] == f"URI:{BILLING}"


def test_authority_certificate_names_the_trust_domain(files: Path) -> None:
    leaf, authority = _extensions(files / "svid.0.pem"), _extensions(files / "bundle.0.pem")
    assert authority["X509v3 Basic Constraints: critical"].startswith("CA:TRUE")
    assert "Certificate Sign" in authority["X509v3 Key Usage: critical"].split(", ")
    assert authority["X509v3 Subject Alternative Name:"] == f"URI:spiffe://{TRUST_DOMAIN}"
    assert leaf["X509v3 Authority Key Identifier:"] == authority["X509v3 Subject Key Identifier:"]


def test_key_belongs_to_the_certificate_and_has_mode_0600(files: Path) -> None:
    key = files / "svid.0.key"
    certified = openssl("x509", "-in", files / "svid.0.pem", "-noout", "-pubkey")
    assert openssl("pkey", "-in", key, "-pubout") == certified
    assert key.stat().st_mode & 0o777 == 0o600


def _strictly(files: Path) -> list[str | Path]:
    """Return the options to trust only the bundle, with the chain as intermediates."""
    return [
        "-x509_strict",
        "-no-CApath",
        "-no-CAstore",
        *("-CAfile", files / "bundle.0.pem"),
        *("-untrusted", files / "svid.0.pem"),
    ]


def _extensions(certificate: Path) -> dict[str, str]:
    """Return the extensions of `openssl x509 -text`: name and criticality -> value."""
    text = openssl("x509", "-in", certificate, "-noout", "-text")
    lines = [line.strip() for line in text.splitlines()]
    return {line: following for line, following in pairwise(lines) if line.startswith("X509v3")}
