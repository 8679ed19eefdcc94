"""A restart of an agent: its SVIDs come from the disk cache."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.client.workload import WorkloadClient
from agent.svids.disk_cache import CREDENTIAL, FILE, KEY_FILE
from tests.support.agent import SAFETY_SECONDS, RunningAgent, entry_for_me


def chain(agent: RunningAgent) -> bytes:
    with WorkloadClient(agent.socket, SAFETY_SECONDS) as client:
        return client.fetch_x509_svids().svids[0].chain_der


def restart(agent: RunningAgent) -> None:
    assert agent.stop() == 0
    agent.start()


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[RunningAgent]:
    agent = RunningAgent(entry_for_me(), env={"CREDENTIALS_DIRECTORY": str(tmp_path)})
    yield agent
    agent.close()


def test_an_svid_outlasts_a_restart_until_its_entry_changes(agent: RunningAgent) -> None:
    first = chain(agent)
    restart(agent)
    assert chain(agent) == first
    agent.stop()
    agent.entries.write_text(entry_for_me(dns_names="[new.example]"))
    agent.start()
    assert chain(agent) != first


def test_svid_cache_false_removes_the_files_of_the_cache(agent: RunningAgent) -> None:
    first = chain(agent)
    agent.stop()
    files = {each.name for each in (agent.directory / "data").iterdir()}
    assert {FILE, KEY_FILE} <= files
    agent.config.write_text(agent.config.read_text() + "svid_cache: false\n")
    agent.start()
    assert chain(agent) != first
    agent.stop()
    files = {each.name for each in (agent.directory / "data").iterdir()}
    assert not {FILE, KEY_FILE} & files
    agent.start()


def test_a_credential_replaces_the_key_file(agent: RunningAgent, tmp_path: Path) -> None:
    agent.stop()
    (agent.directory / "data" / KEY_FILE).unlink()
    (tmp_path / CREDENTIAL).write_bytes(b"c" * 32)
    agent.start()
    first = chain(agent)
    restart(agent)
    assert chain(agent) == first
    assert not (agent.directory / "data" / KEY_FILE).exists()
    agent.stop()
    (tmp_path / CREDENTIAL).write_bytes(b"d" * 32)
    agent.start()
    assert chain(agent) != first
    assert agent.log.count("svid cache not used") == 1
    assert "its key or trust domain is another" in agent.log


def test_the_agent_serves_without_the_cache_if_its_key_is_unusable(agent: RunningAgent) -> None:
    agent.stop()
    (agent.directory / "data" / KEY_FILE).chmod(0o644)
    agent.start()
    assert chain(agent)
    line = agent.wait_for_log("svid cache not used")
    assert "svids.key (mode 0644)" in line
    assert "chmod 0600" in line
    (agent.directory / "data" / KEY_FILE).chmod(0o600)
