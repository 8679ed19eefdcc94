"""Entry files in a directory where others may write too, though not to them: /srv/shared, say."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.support import pids, raw
from tests.support.agent import RunningAgent, entry_for_me

pytestmark = pytest.mark.system

SOMEBODY = 2001
# An edit is told in some 50 ms; what the kernel could not tell is found within two seconds.
SOON_SECONDS = 5.0


@pytest.fixture
def agent() -> Iterator[RunningAgent]:
    running = RunningAgent(entry_for_me("/first"))
    running.directory.chmod(0o1777)
    yield running
    running.close()


def served(agent: RunningAgent) -> str:
    client = raw.connect(str(agent.socket))
    with client.sock:
        return client.fetch_x509().svids[0].spiffe_id.removeprefix("spiffe://example.org")


def edit(agent: RunningAgent, path: str) -> float:
    """Replace the entries; how long it takes until a workload gets the new identity."""
    beside = agent.directory / "new"
    beside.write_text(entry_for_me(path))
    began = time.monotonic()
    beside.rename(agent.entries)
    while served(agent) != path:
        assert time.monotonic() < began + SOON_SECONDS, agent.log[-2000:]
    return time.monotonic() - began


@pytest.mark.parametrize(
    "deed",
    [
        "mkfifo .git",
        r"printf 'gitdir: a\000b' > .git",
        "printf 'gitdir: .' > .git; touch index.lock",
        "mkdir .git; touch .git/index.lock",
        "truncate -s 300M .git",
    ],
)
def test_a_git_of_somebody_else_keeps_no_edit_back(agent: RunningAgent, deed: str) -> None:
    command = ["setpriv", f"--reuid={SOMEBODY}", f"--regid={SOMEBODY}", "--clear-groups"]
    subprocess.run([*command, "sh", "-c", deed], cwd=agent.directory, check=True)
    edit(agent, "/second")
    assert agent.stop() == 0


@contextmanager
def events_without_end(agent: RunningAgent) -> Iterator[None]:
    """Hundreds of thousands a second, in the directory that the agent watches."""

    def make() -> None:
        os.chdir(agent.directory)
        pids.become(SOMEBODY)
        for name in ("one.yaml", "two.yaml"):
            os.close(os.open(name, os.O_CREAT))
        while True:
            os.chmod("one.yaml", 0o600)  # noqa: PTH101
            os.chmod("two.yaml", 0o600)  # noqa: PTH101

    with pids.sleeping_child(make):
        while not (agent.directory / "two.yaml").exists():
            pass
        yield


def test_events_without_end_hold_up_nobody_and_no_edit(agent: RunningAgent) -> None:
    with events_without_end(agent):
        waits = []
        for _ in range(100):
            began = time.monotonic()
            assert served(agent) == "/first"
            waits.append(time.monotonic() - began)
        assert sorted(waits)[50] < 0.05
        assert "entries reloaded" not in agent.log
        edit(agent, "/second")
