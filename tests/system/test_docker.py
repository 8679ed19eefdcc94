"""Containers of a real Docker engine, and a real agent. As root: `make test-system`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import cgroups, raw
from tests.support.agent import RunningAgent
from tests.support.ask import ask
from tests.support.asker import ask_from
from tests.support.engine import IMAGE, DockerEngine, mounts
from tests.support.secrecy import CANARY, CANARY_VARIABLE

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def running() -> Iterator[DockerEngine]:
    engine = DockerEngine()
    yield engine
    engine.close()


@pytest.fixture
def engine(running: DockerEngine) -> Iterator[DockerEngine]:
    yield running
    running.remove_all()


def entries(*selectors: str) -> str:
    """One entry for each selector, whose path is the value with `/` for each `:` and `=`."""
    lines = [
        f"  - {{spiffe_id: /{name}, selectors: ['{selector}']}}"
        for selector in selectors
        for name in [selector.split(":", 1)[1].replace(":", "/").replace("=", "/")]
    ]
    return "\n".join(["entries:", *lines, ""])


def ids(*paths: str) -> list[str]:
    return [f"spiffe://example.org/{path}" for path in paths]


def config(engine: DockerEngine) -> str:
    # The level debug logs everything: a fixture looks for secrets in it.
    return f"attestors: {{unix: {{}}, docker: {{socket: {engine.socket}}}}}\nlog: {{level: debug}}"


@pytest.fixture
def start(
    agent_factory: Callable[..., RunningAgent], engine: DockerEngine
) -> Callable[..., RunningAgent]:
    """Start an agent that asks the engine, with an entry for each of these selectors."""

    def begin(*selectors: str, **options: object) -> RunningAgent:
        return agent_factory(entries(*selectors), config=config(engine), **options)

    return begin


def test_processes_of_run_exec_and_fork_have_all_selectors_of_the_container(
    engine: DockerEngine, start: Callable[..., RunningAgent]
) -> None:
    digest = engine.docker("image", "inspect", "--format={{.Id}}", IMAGE)
    agent = start(
        "docker:label:tier:front",
        "docker:env:MODE=fast",
        f"docker:image_id:{IMAGE}",
        f"docker:image_config_digest:{digest}",
        "docker:container_name:shop-web-1",
        "docker:compose_project:shop",
        "docker:compose_service:web",
        "docker:engine:docker",
        "docker:label:tier:back",
        "docker:engine:podman",
    )
    first = engine.run(
        "shop-web-1",
        agent.directory,
        "--label=tier=front",
        "--env=MODE=fast",
        f"--env={CANARY_VARIABLE}={CANARY}",
        "--label=com.docker.compose.project=shop",
        "--label=com.docker.compose.service=web",
    )
    everything = ids(
        "label/tier/front",
        "env/MODE/fast",
        "image_id/vouchd-test/1",
        f"image_config_digest/{digest.replace(':', '/')}",
        "container_name/shop-web-1",
        "compose_project/shop",
        "compose_service/web",
        "engine/docker",
    )
    assert first.ask() == everything
    assert first.ask_in_child() == everything
    assert engine.exec("shop-web-1", agent.directory).ask() == everything
    assert engine.exec("shop-web-1", agent.directory, "--user=1001").ask() == everything
    assert "MODE=fast" not in agent.log


@pytest.mark.parametrize("namespace", ["private", "host"])
def test_two_containers_on_one_socket_have_their_own_identities(
    engine: DockerEngine, start: Callable[..., RunningAgent], namespace: str
) -> None:
    agent = start("docker:container_name:one", "docker:container_name:two")
    option = f"--cgroupns={namespace}"
    one, two = (engine.run(name, agent.directory, option) for name in ("one", "two"))
    for _ in range(2):
        assert one.ask() == ids("container_name/one")
        assert two.ask() == ids("container_name/two")
    assert ask(str(agent.socket)) == raw.PERMISSION_DENIED


def test_agent_in_a_cgroup_namespace_attests_containers_outside(
    engine: DockerEngine, start: Callable[..., RunningAgent]
) -> None:
    with cgroups.directory("agent-own") as own:
        agent = start(
            "docker:container_name:one", prefix=(*own.enter_command(), "unshare", "--cgroup")
        )
        one = engine.run("one", agent.directory)
        cgroup = Path(f"/proc/{engine.docker('inspect', '--format={{.State.Pid}}', 'one')}/cgroup")
        assert "/docker/" in cgroup.read_text()
        assert one.ask() == ids("container_name/one")
        agent.stop()


def test_new_container_with_an_old_name_has_its_own_identity(
    engine: DockerEngine, start: Callable[..., RunningAgent]
) -> None:
    agent = start("docker:label:v:1", "docker:label:v:2")
    assert engine.run("web", agent.directory, "--label=v=1").ask() == ids("label/v/1")
    engine.remove_all()
    assert engine.run("web", agent.directory, "--label=v=2").ask() == ids("label/v/2")


def test_restarted_container_has_its_identity_at_once(
    engine: DockerEngine, start: Callable[..., RunningAgent]
) -> None:
    agent = start("docker:container_name:web")
    waiting = ("/busybox", "sleep", "infinity")
    options = ("--network=none", "--name=web", "--init=false", *mounts(agent.directory))
    engine.docker("run", "--detach", *options, IMAGE, *waiting)
    for _ in range(3):
        assert engine.exec("web", agent.directory).ask() == ids("container_name/web")
        engine.docker("restart", "--time=0", "web")


def test_renamed_container_has_the_identity_of_its_new_name(
    engine: DockerEngine, start: Callable[..., RunningAgent]
) -> None:
    agent = start("docker:container_name:before", "docker:container_name:after")
    asker = engine.run("before", agent.directory)
    assert asker.ask() == ids("container_name/before")
    engine.docker("rename", "before", "after")
    assert asker.ask() == ids("container_name/after")


@pytest.fixture
def mortal() -> Iterator[DockerEngine]:
    """An engine of one test, which may kill it."""
    engine = DockerEngine()
    yield engine
    engine.close()


def test_killed_engine_leaves_known_containers_their_identity(
    mortal: DockerEngine, agent_factory: Callable[..., RunningAgent]
) -> None:
    engine = mortal
    selectors = ("docker:container_name:known", "docker:container_name:unknown", "unix:uid:1001")
    agent = agent_factory(entries(*selectors), config=config(engine))
    known, unknown = (engine.run(name, agent.directory) for name in ("known", "unknown"))
    other = engine.exec("unknown", agent.directory, "--user=1001")
    assert known.ask() == ids("container_name/known")
    engine.kill()
    assert known.ask() == ids("container_name/known")
    assert unknown.ask() == raw.UNAVAILABLE
    assert f"{engine.socket} cannot be asked" in agent.wait_for_log("attestor failed")
    assert other.ask() == ids("uid/1001"), "an entry without docker selectors is served"
    engine.start()
    assert unknown.ask() == ids("container_name/unknown")
    assert known.ask() == ids("container_name/known")


def test_missing_engine_does_not_affect_a_process_in_no_container(
    agent_factory: Callable[..., RunningAgent],
) -> None:
    nowhere = "attestors: {unix: {}, docker: {socket: /nowhere/docker.sock}}"
    agent = agent_factory("entries: []\n", config=nowhere)
    assert ask(str(agent.socket)) == raw.PERMISSION_DENIED
    assert "attestor failed" not in agent.log


# --- forged names, in real cgroup directories ----------------------------------------------------


FORGED = {
    "of a user's manager": "user.slice/user-1001.slice/user@1001.service/docker-{id}.scope",
    "of a login session": "user.slice/user-1001.slice/session-1.scope/docker-{id}.scope",
    "of a service": "system.slice/web.service/docker/{id}",
    "below another container": "docker/" + "e" * 64 + "/docker/{id}",
    "where the engine does not put it": "elsewhere/docker/{id}",
    "of another driver": "system.slice/docker-{id}.scope",
}


@pytest.mark.parametrize("path", FORGED.values(), ids=FORGED.keys())
def test_cgroup_with_the_name_of_a_container_yields_none_of_its_selectors(
    engine: DockerEngine, start: Callable[..., RunningAgent], path: str
) -> None:
    agent = start("docker:container_name:victim")
    victim = engine.run("victim", agent.directory)
    assert victim.ask() == ids("container_name/victim")
    container_id = engine.docker("inspect", "--format={{.Id}}", "victim")
    with cgroups.directory(path.format(id=container_id)) as forged:
        assert ask_from(agent, forged, uid=1001) in (raw.PERMISSION_DENIED, raw.UNAVAILABLE)
    assert victim.ask() == ids("container_name/victim")


def test_container_that_creates_cgroups_does_not_become_another_container(
    engine: DockerEngine, start: Callable[..., RunningAgent]
) -> None:
    agent = start("docker:container_name:victim", "docker:container_name:attacker")
    engine.run("victim", agent.directory)
    attacker = engine.run("attacker", agent.directory)
    victim_id, own_id = (
        engine.docker("inspect", "--format={{.Id}}", name) for name in ("victim", "attacker")
    )
    below = f"docker/{own_id}/docker/{victim_id}"
    with cgroups.directory(below) as forged:
        # The container could do this itself if its cgroups were mounted writable.
        forged.take(engine.pid("attacker"))
        assert attacker.ask() == ids("container_name/attacker")
        engine.remove_all()
