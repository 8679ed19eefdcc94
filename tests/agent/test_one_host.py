"""Each agent is an authority of its own: README.md says so first."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature

from tests.conftest import AgentFactory
from tests.support.agent import RunningAgent
from tests.support.cli import vouchd


def fetch(agent: RunningAgent, directory: Path) -> tuple[x509.Certificate, x509.Certificate]:
    """The SVID of this user, and the authority in the bundle."""
    done = vouchd("fetch", "x509", "--socket", agent.socket, "--write", directory)
    assert done.code == 0, done.stderr
    names = ("svid.0.pem", "bundle.0.pem")
    svid, authority = (x509.load_pem_x509_certificate((directory / n).read_bytes()) for n in names)
    return svid, authority


def test_svid_of_one_agent_is_not_valid_at_another(
    agent_factory: AgentFactory, tmp_path: Path
) -> None:
    """Though both have the same trust domain."""
    one, own = fetch(agent_factory(), tmp_path / "one")
    other, foreign = fetch(agent_factory(), tmp_path / "other")
    one.verify_directly_issued_by(own)
    other.verify_directly_issued_by(foreign)
    with pytest.raises((InvalidSignature, ValueError)):
        one.verify_directly_issued_by(foreign)
