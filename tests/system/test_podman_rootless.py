"""Containers of a user's own Podman, and a real agent. As root: `make test-system`."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.support import cgroups, raw
from tests.support.agent import RunningAgent
from tests.support.asker import ask_from
from tests.support.rootless import RootlessPodman

pytestmark = pytest.mark.system

OWNER, OTHER = 20001, 20002
ENTRIES = f"""
entries:
  - {{spiffe_id: /one, selectors: ["podman-rootless:{OWNER}:container_name:one"]}}
  - {{spiffe_id: /two, selectors: ["podman-rootless:{OWNER}:label:tier:front"]}}
  - {{spiffe_id: /of-root, selectors: ["docker:container_name:one"]}}
  - {{spiffe_id: /of-another, selectors: ["podman-rootless:{OTHER}:container_name:one"]}}
"""


@pytest.fixture
def podman() -> Iterator[RootlessPodman]:
    engine = RootlessPodman(OWNER)
    yield engine
    engine.close()


def test_only_processes_in_a_users_container_have_its_selectors(
    podman: RootlessPodman, agent_factory: Callable[..., RunningAgent]
) -> None:
    socket = podman.socket.parent / "{uid}.sock"
    config = f"attestors: {{docker: {{}}, podman-rootless: {{socket: '{socket}'}}}}"
    agent = agent_factory(ENTRIES, config=config)
    one = podman.run("one", agent.directory)
    two = podman.run("two", agent.directory, "--label=tier=front", "--user=7")
    for asker in (one, podman.exec("one", agent.directory)):
        assert asker.ask() == ["spiffe://example.org/one"]
        assert asker.ask_in_child() == ["spiffe://example.org/one"]
    assert two.ask() == ["spiffe://example.org/two"]

    of_one = podman.podman("inspect", "--format={{.Id}}", "one")
    another = f"user.slice/user-{OTHER}.slice/user@{OTHER}.service/user.slice/{of_one}"
    with cgroups.directory(f"{podman.place}/app.slice") as outside:
        assert ask_from(agent, outside, OWNER) == raw.PERMISSION_DENIED
    with cgroups.directory(f"{podman.place}/app.slice/{of_one}") as elsewhere:
        assert ask_from(agent, elsewhere, OWNER) == raw.UNAVAILABLE
        assert "is in another cgroup than the process" in agent.wait_for_log("attestor failed")
    seen = len(agent.log.splitlines())
    with cgroups.directory(another) as forged:
        assert ask_from(agent, forged, OTHER) == raw.UNAVAILABLE
        why = agent.wait_for_log("attestor failed", since=seen)
        assert f"the Podman of user {OTHER} has no socket" in why
    podman.podman("rename", "one", "three")
    assert one.ask() == raw.PERMISSION_DENIED, "an answer of a user's engine is not kept"
