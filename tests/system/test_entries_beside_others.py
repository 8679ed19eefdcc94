"""Entry files in a directory where other users may write too, though not to the files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.support import pids, raw
from tests.support.agent import RunningAgent, entry_for_me

pytestmark = pytest.mark.system

OTHER_USER = 2001


@pytest.fixture
def agent() -> Iterator[RunningAgent]:
    running = RunningAgent(entry_for_me("/first"))
    running.directory.chmod(0o1777)
    running.wait_for_log("entries reloaded")
    yield running
    running.close()


def served(agent: RunningAgent) -> str:
    client = raw.connect(str(agent.socket))
    with client.sock:
        return client.fetch_x509().svids[0].spiffe_id.removeprefix("spiffe://example.org")


@contextmanager
def events_without_end(agent: RunningAgent) -> Iterator[None]:
    """Cause hundreds of thousands of events per second in the directory that the agent watches."""

    def make() -> None:
        os.chdir(agent.directory)
        pids.become(OTHER_USER)
        for name in ("one.yaml", "two.yaml"):
            os.close(os.open(name, os.O_CREAT))
        while True:
            os.chmod("one.yaml", 0o600)  # noqa: PTH101
            os.chmod("two.yaml", 0o600)  # noqa: PTH101

    with pids.sleeping_child(make):
        while not (agent.directory / "two.yaml").exists():
            pass
        yield


def test_events_without_end_delay_no_call_and_hide_no_edit(agent: RunningAgent) -> None:
    with events_without_end(agent):
        for _ in range(100):
            assert served(agent) == "/first"
        assert agent.log.count("entries reloaded") == 1
        beside = agent.directory / "new"
        beside.write_text(entry_for_me("/second"))
        seen = agent.log.count("\n")
        beside.rename(agent.entries)
        agent.wait_for_log("entries reloaded", since=seen)
        assert served(agent) == "/second"
