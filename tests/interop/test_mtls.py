"""Two workloads authenticate each other with their X.509-SVIDs over mutual TLS."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import AgentFactory
from tests.interop.files import Workload
from tests.interop.foreign import ForeignClient, running
from tests.support.agent import TRUST_DOMAIN, RunningAgent, entry_for_me

SSL_PEER: list[str | Path] = [sys.executable, Path(__file__).parent / "python" / "ssl_peer.py"]

# Three agents: the first, one with the same trust domain name, and one with another trust domain.
HOME, NAMESAKE, ELSEWHERE = AGENTS = ("home", "namesake", "elsewhere")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """The files that `orders` and `billing` fetched from each agent, by (agent, workload)."""
    programs = tmp_path_factory.mktemp("programs")
    workloads = [Workload.install(name, programs) for name in ("orders", "billing")]
    found = {}
    for name in AGENTS:
        agent = RunningAgent("entries:\n" + "".join(workload.entry for workload in workloads))
        try:
            if name == ELSEWHERE:
                move(agent, "elsewhere.example")
            for workload in workloads:
                place = tmp_path_factory.mktemp(workload.name)
                found[name, workload.name] = workload.fetch(agent, place)
        finally:
            agent.close()
    return found


def test_each_peer_verifies_the_spiffe_id_of_the_other(files: dict[tuple[str, str], Path]) -> None:
    orders, billing = handshake(files[HOME, "orders"], files[HOME, "billing"])

    assert orders == {"peer": f"spiffe://{TRUST_DOMAIN}/billing"}
    assert billing == {"peer": f"spiffe://{TRUST_DOMAIN}/orders"}


@pytest.mark.parametrize("agent", [NAMESAKE, ELSEWHERE])
@pytest.mark.parametrize("foreign", ["orders", "billing"])
def test_svid_of_another_authority_is_refused(
    files: dict[tuple[str, str], Path], tmp_path: Path, agent: str, foreign: str
) -> None:
    verifier = "billing" if foreign == "orders" else "orders"
    # The foreign workload trusts the verifier's authority: only the verifier can refuse.
    copied = shutil.copytree(files[agent, foreign], tmp_path / "foreign")
    shutil.copy(files[HOME, verifier] / "bundle.0.pem", copied)
    place = {verifier: files[HOME, verifier], foreign: copied}

    orders, billing = handshake(place["orders"], place["billing"])

    results = {"orders": orders, "billing": billing}
    assert "certificate verify failed" in results[verifier]["refused"]
    assert "refused" in results[foreign]


@pytest.mark.parametrize(
    ("server", "client"), [("py_spiffe", "go_spiffe"), ("go_spiffe", "py_spiffe")]
)
def test_two_libraries_verify_each_other(
    agent_factory: AgentFactory, request: pytest.FixtureRequest, server: str, client: str
) -> None:
    agent = agent_factory(entry_for_me())
    listening: ForeignClient = request.getfixturevalue(server)
    dialling: ForeignClient = request.getfixturevalue(client)

    me = {"peer": f"spiffe://{TRUST_DOMAIN}/test/me"}
    with listening.running(agent, "serve") as listener:
        assert dialling.once(agent, "dial", str(listener.next()["port"])) == me
        assert listener.next() == me


def handshake(orders: Path, billing: Path) -> tuple[Any, Any]:
    """Connect `billing` to `orders` with Python's ssl; return the result that each prints."""
    with running([*SSL_PEER, "serve", orders]) as server:
        port = server.next()["port"]
        with running([*SSL_PEER, "dial", billing, str(port)]) as client:
            return server.next(), client.next()


def move(agent: RunningAgent, trust_domain: str) -> None:
    """Restart the agent with another trust domain and a new authority."""
    agent.stop()
    config = agent.config.read_text()
    agent.config.write_text(
        config.replace(TRUST_DOMAIN, trust_domain).replace("data_dir: data", "data_dir: other")
    )
    agent.start()
