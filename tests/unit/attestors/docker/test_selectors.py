"""What the engine says of a container, and of which processes it is believed."""

from __future__ import annotations

import pytest

from attestors.api import Findings
from tests.support.engine_server import EngineServer
from tests.support.findings import values
from tests.unit.attestors.docker.conftest import CGROUP, ID, attestor, caller, fails


async def test_what_the_engine_says_becomes_selectors(engine: EngineServer) -> None:
    labels = {"com.docker.compose.project": "shop", "com.docker.compose.service": "web", "n": ""}
    engine.add(ID, Labels=labels, Env=["A=b:c", "EMPTY="])
    async with attestor(engine) as docker:
        assert values(await docker.attest(caller())) == {
            "label:com.docker.compose.project:shop",
            "label:com.docker.compose.service:web",
            "label:n:",
            "env:A=b:c",
            "env:EMPTY=",
            "image_id:nginx:1",
            f"image_config_digest:sha256:{'1' * 64}",
            "container_name:web",
            "compose_project:shop",
            "compose_service:web",
            "engine:docker",
        }


async def test_a_container_without_labels_and_environment(engine: EngineServer) -> None:
    engine.add(ID, Labels=None, Env=None, Image="")
    async with attestor(engine) as docker:
        assert values(await docker.attest(caller())) == {
            f"image_config_digest:sha256:{'1' * 64}",
            "container_name:web",
            "engine:docker",
        }


@pytest.mark.parametrize(
    "cgroup",
    [
        b"0::/\n",
        b"0::/system.slice/cron.service\n",
        f"0::/kubepods.slice/kubepods-pod{'0' * 8}_0000_0000_0000_{'0' * 12}.slice/"
        f"cri-containerd-{ID}.scope\n".encode(),
        f"0::/kubepods.slice/crio-{ID}.scope\n".encode(),
    ],
)
async def test_a_process_of_no_engine_is_answered_without_asking_any(
    engine: EngineServer, cgroup: bytes
) -> None:
    process = caller(cgroup=cgroup)
    async with attestor(engine) as docker:
        assert await docker.attest(process) == Findings()
    assert engine.inspected == []
    assert not engine.watched.is_set()
    assert process.reads == ["cgroup"]


async def test_a_container_of_a_users_own_is_never_asked_of_roots_engine(
    engine: EngineServer,
) -> None:
    engine.add(ID)
    forged = f"0::/user.slice/user-1000.slice/user@1000.service/docker-{ID}.scope\n"
    async with attestor(engine) as docker:
        findings = await docker.attest(caller(cgroup=forged.encode()))
    assert findings.selectors == frozenset()
    assert "user 1000 runs this container's engine" in findings.notes[0]
    assert engine.inspected == []


async def test_a_cgroup_of_the_right_name_in_another_place_yields_nothing(
    engine: EngineServer,
) -> None:
    engine.add(ID)
    async with attestor(engine) as docker:
        forged = caller(cgroup=f"0::/elsewhere/docker-{ID}.scope\n".encode())
        assert "is in another cgroup than the process" in await fails(docker, forged)
        # And the honest one is not harmed by it.
        assert values(await docker.attest(caller()))


async def test_a_process_below_the_containers_own_cgroup_is_in_it(engine: EngineServer) -> None:
    engine.add(ID)
    async with attestor(engine) as docker:
        assert values(await docker.attest(caller(cgroup=CGROUP.strip() + b"/init.scope\n")))


async def test_a_process_older_than_the_container_is_not_of_it(engine: EngineServer) -> None:
    engine.add(ID)
    async with attestor(engine) as docker:
        assert "older than its container" in await fails(docker, caller(started=0))


async def test_an_engine_that_does_not_know_the_container(engine: EngineServer) -> None:
    async with attestor(engine) as docker:
        findings = await docker.attest(caller())
    assert findings.selectors == frozenset()
    assert f"no engine knows the container {ID[:12]}" in findings.notes[0]
