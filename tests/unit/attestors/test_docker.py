"""The docker attestor: the selectors of a container, and the processes that get them."""

from __future__ import annotations

import pytest

from attestors.api import Findings
from tests.support.engine_caller import CGROUP, ID, attestor, caller, fails
from tests.support.engine_server import EngineServer
from tests.support.findings import values


async def test_description_of_the_engine_becomes_selectors(engine: EngineServer) -> None:
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


async def test_container_without_labels_and_environment_has_the_other_selectors(
    engine: EngineServer,
) -> None:
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
async def test_engine_is_not_asked_about_a_process_in_no_container_of_it(
    engine: EngineServer, cgroup: bytes
) -> None:
    process = caller(cgroup=cgroup)
    async with attestor(engine) as docker:
        assert await docker.attest(process) == Findings()
    assert engine.inspected == []
    assert not engine.watched.is_set()
    assert process.reads == ["cgroup"]


async def test_engine_of_root_is_not_asked_about_a_container_of_another_user(
    engine: EngineServer,
) -> None:
    engine.add(ID)
    forged = f"0::/user.slice/user-1000.slice/user@1000.service/docker-{ID}.scope\n"
    async with attestor(engine) as docker:
        findings = await docker.attest(caller(cgroup=forged.encode()))
    assert findings.selectors == frozenset()
    assert "user 1000 runs this container's engine" in findings.notes[0]
    assert engine.inspected == []


async def test_cgroup_of_the_right_name_in_another_place_yields_nothing(
    engine: EngineServer,
) -> None:
    engine.add(ID)
    async with attestor(engine) as docker:
        forged = caller(cgroup=f"0::/elsewhere/docker-{ID}.scope\n".encode())
        assert "is in another cgroup than the process" in await fails(docker, forged)
        assert values(await docker.attest(caller())), "the container keeps its selectors"


async def test_process_below_the_cgroup_of_the_container_is_in_it(engine: EngineServer) -> None:
    engine.add(ID)
    async with attestor(engine) as docker:
        assert values(await docker.attest(caller(cgroup=CGROUP.strip() + b"/init.scope\n")))


async def test_process_older_than_the_container_is_not_in_it(engine: EngineServer) -> None:
    engine.add(ID)
    async with attestor(engine) as docker:
        assert "older than its container" in await fails(docker, caller(started=0))


async def test_container_that_the_engine_does_not_know_is_noted(engine: EngineServer) -> None:
    async with attestor(engine) as docker:
        findings = await docker.attest(caller())
    assert findings.selectors == frozenset()
    assert f"no engine knows the container {ID[:12]}" in findings.notes[0]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ProcessLookupError(3, "No such process"), "the process exited"),
        (PermissionError(13, "Permission denied"), "/proc/PID/cgroup cannot be read: Permission"),
    ],
)
async def test_cgroup_that_cannot_be_read_is_a_failure_with_a_reason(
    engine: EngineServer, error: OSError, reason: str
) -> None:
    process = caller()
    process.error = error
    async with attestor(engine) as docker:
        assert reason in await fails(docker, process)
