"""Workload API: vouchd as a client and as a validator."""

from __future__ import annotations

import select
import subprocess
import sys
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from agent.spiffe.ids import TrustDomain
from agent.spiffe.jwt_rules import validate_jwt_svid
from agent.spiffe.x509_rules import ValidationError, validate_x509_svid
from tests.conftest import AgentFactory
from tests.support.agent import REPOSITORY, SAFETY_SECONDS, entry_for_me
from tests.vectors.pki import forge
from tests.vectors.pki.forge import ID, NOW, TD

OTHER_TD = TrustDomain("other.example")
OWN_KEY, OTHER_KEY = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))


def _line(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], SAFETY_SECONDS)
    assert ready, "nothing was printed"
    return process.stdout.readline()


def test_WL_05_the_client_opens_an_ended_stream_again(agent_factory: AgentFactory) -> None:
    agent = agent_factory()
    command = [sys.executable, "-m", "agent", "watch", "x509", "--output", "json"]
    with subprocess.Popen(
        [*command, "--socket", str(agent.socket)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
    ) as watch:
        try:
            first = _line(watch)
            agent.stop()
            agent.start()
            again = _line(watch)
        finally:
            watch.terminate()
    assert b"spiffe://example.org/test/me" in first
    assert b"spiffe://example.org/test/me" in again
    assert first == again, "the restarted agent serves another SVID"


def test_WL_14_a_certificate_is_validated_with_its_own_trust_domain_s_bundle() -> None:
    foreign = forge.leaf(san=(forge.names(f"spiffe://{OTHER_TD}/a"), False))
    # The same key signs for both: only the trust domain differs.
    own_bundle = forge.bundle(forge.authority())
    other_bundle = forge.bundle(forge.authority(trust_domain=OTHER_TD), trust_domain=OTHER_TD)
    validate_x509_svid([foreign], other_bundle, NOW)
    validate_x509_svid([forge.leaf()], own_bundle, NOW)
    with pytest.raises(ValidationError):
        validate_x509_svid([foreign], own_bundle, NOW)
    with pytest.raises(ValidationError):
        validate_x509_svid([forge.leaf()], other_bundle, NOW)


def test_WL_53_a_token_is_validated_with_its_subject_s_trust_domain_s_bundle() -> None:
    bundles = {
        TD: forge.bundle(own=OWN_KEY),
        OTHER_TD: forge.bundle(trust_domain=OTHER_TD, other=OTHER_KEY),
    }

    def validated(subject: str, key: ec.EllipticCurvePrivateKey, kid: str | None) -> str:
        claims = {"sub": subject, "aud": ["me"], "exp": int(NOW.timestamp()) + 60}
        token = jwt.encode(claims, key, "ES256", {"kid": kid} if kid else None)
        return str(validate_jwt_svid(token, "me", bundles, NOW).spiffe_id)

    other_id = f"spiffe://{OTHER_TD}/a"
    assert validated(str(ID), OWN_KEY, "own") == str(ID)
    assert validated(other_id, OTHER_KEY, "other") == other_id
    for subject, key, kid in (
        (str(ID), OTHER_KEY, "other"),
        (str(ID), OTHER_KEY, "own"),
        (str(ID), OTHER_KEY, None),
        (other_id, OWN_KEY, "own"),
        ("spiffe://third.example/a", OWN_KEY, "own"),
    ):
        with pytest.raises(ValidationError):
            validated(subject, key, kid)


@pytest.mark.parametrize(("length", "code"), [(1024, 0), (1025, 2)])
def test_WL_71_check_refuses_a_hint_of_more_than_1024_bytes(
    tmp_path: Path, length: int, code: int
) -> None:
    # Two bytes per letter: the limit counts bytes.
    hint = "ä" * (length // 2) + "a" * (length % 2)
    (tmp_path / "entries.yaml").write_text(entry_for_me(hint=hint), encoding="utf-8")
    config = tmp_path / "agent.yaml"
    config.write_text("trust_domain: example.org\nentries: [entries.yaml]\n", encoding="utf-8")
    check = subprocess.run(
        [sys.executable, "-m", "agent", "check", "-c", str(config)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert check.returncode == code, check.stdout
    assert code == 0 or "1024 bytes" in check.stdout + check.stderr
