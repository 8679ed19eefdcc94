"""Entry files on a file system that hangs delay reloads, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support import raw
from tests.support.agent import RunningAgent, entry_for_me
from tests.support.hung_mount import hung_mount

pytestmark = pytest.mark.system


@pytest.fixture
def agent() -> Iterator[RunningAgent]:
    running = RunningAgent(entry_for_me("/first"))
    (running.directory / "mounted").mkdir()
    (running.directory / "mounted/a.yaml").write_text(entry_for_me("/second"))
    running.config.write_text(running.config.read_text().replace("entries.yaml", "mounted"))
    running.hang_up()
    running.wait_for_log("entries reloaded")
    yield running
    running.close()


def served(agent: RunningAgent) -> str:
    client = raw.connect(str(agent.socket))
    with client.sock:
        return client.fetch_x509().svids[0].spiffe_id.removeprefix("spiffe://example.org")


def test_agent_serves_warns_and_stops_while_its_entry_files_hang(agent: RunningAgent) -> None:
    with hung_mount(agent.directory / "mounted"):
        line = agent.wait_for_log("entries not reloaded yet")
        assert "the file system does not answer" in line
        for _ in range(10):
            assert served(agent) == "/second"
        agent.hang_up()
        agent.wait_for_log("settings reloaded", since=agent.log.count("\n") - 1)
        assert served(agent) == "/second"
        assert agent.stop() == 0


def test_entries_are_reloaded_when_the_file_system_answers_again(agent: RunningAgent) -> None:
    with hung_mount(agent.directory / "mounted"):
        agent.wait_for_log("entries not reloaded yet")
    (agent.directory / "mounted/a.yaml").write_text(entry_for_me("/third"))
    seen = agent.log.count("\n")
    agent.wait_for_log("entries reloaded", since=seen - 1)
    while served(agent) != "/third":
        agent.wait_for_log("entries reloaded", since=seen)
    assert agent.stop() == 0
