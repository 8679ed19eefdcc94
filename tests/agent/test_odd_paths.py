"""An agent below paths with characters that have a meaning in URIs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from agent.client.endpoint import parse_endpoint
from tests.support.agent import RunningAgent, entry_for_me
from tests.support.cli import vouchd


class OddAgent(RunningAgent):
    """An agent whose directory, and so every path of its own, has such characters."""

    _directory_prefix = "a%41 b#c?d ä"


@pytest.fixture
def agent() -> Iterator[RunningAgent]:
    running = OddAgent(entry_for_me())
    yield running
    running.close()


def test_the_ready_line_names_an_endpoint_that_clients_can_use(agent: RunningAgent) -> None:
    [line] = [line for line in agent.log.splitlines() if " ready on " in line]
    address = line.rpartition(" ")[2]
    assert parse_endpoint(address) == agent.socket
    outcome = vouchd("fetch", "x509", SPIFFE_ENDPOINT_SOCKET=address)
    assert outcome.code == 0, outcome.stderr
    assert "spiffe://example.org/test/me" in outcome.stdout


def test_the_admin_commands_reach_an_admin_socket_by_its_path(agent: RunningAgent) -> None:
    outcome = vouchd("status", "--admin-socket", agent.admin_socket)
    assert outcome.code == 0, outcome.stderr
    by_config = vouchd("status", "-c", agent.config)
    assert by_config.code == 0, by_config.stderr
