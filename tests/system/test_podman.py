"""Containers of root's Podman, and a real agent. As root: `make test-system`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from tests.support import raw
from tests.support.agent import SAFETY_SECONDS, RunningAgent
from tests.support.ask import ask
from tests.support.podman import Podman

pytestmark = pytest.mark.system

ENTRIES = """
entries:
  - {spiffe_id: /one, selectors: ["docker:container_name:one", "docker:engine:podman"]}
  - {spiffe_id: /two, selectors: ["docker:container_name:two", "docker:label:tier:front"]}
  - {spiffe_id: /docker, selectors: ["docker:engine:docker"]}
"""


@pytest.fixture
def podman() -> Iterator[Podman]:
    engine = Podman()
    yield engine
    engine.close()


def test_run_exec_fork_and_rename_change_the_identity(
    podman: Podman, agent_factory: Callable[..., RunningAgent]
) -> None:
    config = f"attestors: {{docker: {{podman_socket: {podman.socket}}}}}"
    agent = agent_factory(ENTRIES, config=config)
    one = podman.run("one", agent.directory)
    two = podman.run("two", agent.directory, "--label=tier=front")
    for asker in (one, podman.exec("one", agent.directory)):
        assert asker.ask() == ["spiffe://example.org/one"]
        assert asker.ask_in_child() == ["spiffe://example.org/one"]
    assert two.ask() == ["spiffe://example.org/two"]
    assert ask(str(agent.socket)) == raw.PERMISSION_DENIED
    podman.podman("rm", "--force", "--time=0", "two")
    podman.podman("rename", "one", "two")
    podman.podman("rename", "two", "three")
    # Podman reads its own events from a file, and reports them a moment later.
    end = time.monotonic() + SAFETY_SECONDS
    while one.ask() != raw.PERMISSION_DENIED:
        assert time.monotonic() < end, "the new name was not noticed"
