"""Two workloads, each with its own identity, prove it to each other over TLS."""

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

SSL_PEER: list[str | Path] = [sys.executable, Path(__file__).parent / "clients" / "ssl_peer.py"]

# Three agents: ours, one of the same trust domain's name, and one of another trust domain.
HOME, NAMESAKE, ELSEWHERE = AGENTS = ("home", "namesake", "elsewhere")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """What orders and billing each fetched from each agent: (agent, workload) -> its files."""
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


def test_each_sees_who_the_other_is(files: dict[tuple[str, str], Path]) -> None:
    orders, billing = meet(files[HOME, "orders"], files[HOME, "billing"])

    assert orders == {"peer": f"spiffe://{TRUST_DOMAIN}/billing"}
    assert billing == {"peer": f"spiffe://{TRUST_DOMAIN}/orders"}


@pytest.mark.parametrize("agent", [NAMESAKE, ELSEWHERE])
@pytest.mark.parametrize("stranger", ["orders", "billing"])
def test_whom_another_authority_vouches_for_is_refused(
    files: dict[tuple[str, str], Path], tmp_path: Path, agent: str, stranger: str
) -> None:
    host = "billing" if stranger == "orders" else "orders"
    # The stranger trusts its host, so that a refusal can only be the host's.
    credulous = shutil.copytree(files[agent, stranger], tmp_path / "stranger")
    shutil.copy(files[HOME, host] / "bundle.0.pem", credulous)
    place = {host: files[HOME, host], stranger: credulous}

    orders, billing = meet(place["orders"], place["billing"])

    said = {"orders": orders, "billing": billing}
    assert "certificate verify failed" in said[host]["refused"]
    assert "refused" in said[stranger]


@pytest.mark.parametrize(
    ("server", "client"), [("py_spiffe", "go_spiffe"), ("go_spiffe", "py_spiffe")]
)
def test_the_libraries_agree_with_each_other(
    agent_factory: AgentFactory, request: pytest.FixtureRequest, server: str, client: str
) -> None:
    agent = agent_factory(entry_for_me())
    listening: ForeignClient = request.getfixturevalue(server)
    dialling: ForeignClient = request.getfixturevalue(client)

    me = {"peer": f"spiffe://{TRUST_DOMAIN}/test/me"}
    with listening.running(agent, "serve") as listener:
        assert dialling.once(agent, "dial", str(listener.next()["port"])) == me
        assert listener.next() == me


def meet(orders: Path, billing: Path) -> tuple[Any, Any]:
    """Orders serves and billing dials, both with Python's ssl; what each says of it."""
    with running([*SSL_PEER, "serve", orders]) as server:
        port = server.next()["port"]
        with running([*SSL_PEER, "dial", billing, str(port)]) as client:
            return server.next(), client.next()


def move(agent: RunningAgent, trust_domain: str) -> None:
    """Start it again for another trust domain, which has an authority of its own."""
    agent.stop()
    config = agent.config.read_text()
    agent.config.write_text(
        config.replace(TRUST_DOMAIN, trust_domain).replace("data_dir: data", "data_dir: other")
    )
    agent.start()
