"""The docker attestor against an engine that lies, dawdles, and dies."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
from aiohttp import web

from attestors import _containers, _engine, _processes
from attestors.api import AttestorContext, AttestorError, Findings
from attestors.docker import DockerAttestor, DockerOptions
from tests.support.engine_server import EngineServer, as_nobody, kernel_says
from tests.support.findings import closing, until, values
from tests.support.workload import Workload

ID = "a" * 64
OTHER = "b" * 64
CGROUP = f"0::/system.slice/docker-{ID}.scope\n".encode()


def caller(cgroup: bytes = CGROUP, **fields: Any) -> Workload:
    return Workload(cgroup, **fields)


@pytest.fixture
async def engine() -> AsyncIterator[EngineServer]:
    """An engine; the kernel has the first process of every container in CGROUP."""
    with kernel_says(CGROUP):
        async with EngineServer() as server:
            yield server


def attestor(engine: EngineServer) -> AbstractAsyncContextManager[DockerAttestor]:
    options = DockerOptions(
        socket=str(engine.path), podman_socket=str(engine.directory / "none.sock")
    )
    return closing(DockerAttestor(options, AttestorContext()))


async def fails(docker: DockerAttestor, process: Workload | None = None) -> str:
    with pytest.raises(AttestorError) as caught:
        await docker.attest(process or caller())
    return str(caught.value)


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


async def test_no_engine(engine: EngineServer) -> None:
    podmans = f"0::/machine.slice/libpod-{ID}.scope\n".encode()
    async with attestor(engine) as docker:
        error = await fails(docker, caller(cgroup=podmans))
    assert f"{engine.directory}/none.sock cannot be asked: No such file or directory" in error


async def test_a_socket_that_the_agent_may_not_use(engine: EngineServer) -> None:
    engine.path.chmod(0)
    async with attestor(engine) as docker:
        with as_nobody():
            error = await fails(docker)
    assert f"{engine.path} cannot be asked: Permission denied; the agent has to be root" in error


def say(status: int = 200, body: bytes | str = b"") -> web.Response:
    return web.Response(status=status, body=body, content_type="application/json")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (say(body=b"x" * (_engine.ANSWER_BYTES + 1)), "longer than 4194304 bytes"),
        (say(body=b"<html>"), "its answer is not a container's: all of it: Invalid JSON"),
        (say(body=b"[" * 100_000), "its answer is not a container's"),
        (say(body=b'{"Id": 1}'), "its answer is not a container's: Id: "),
        (say(body='{"Id": "", "State": {"Pid": 4294967296}, "Config": {}}'), "State.Pid: "),
        (say(body='{"Id": "", "State": {"Pid": -1}, "Config": {}}'), "State.Pid: "),
        (say(body='{"Id": "b", "State": {"Pid": 1}, "Config": {}}'), "it told of 'b'"),
        (say(400, b'{"message":"client version 9.9 is too new"}'), "client version 9.9 is too new"),
        (say(500, b"x" * 100_000), "HTTP status 500: 'xxx"),
        (say(301, b""), "HTTP status 301"),
    ],
)
async def test_an_answer_that_makes_no_sense(
    engine: EngineServer, answer: web.Response, reason: str
) -> None:
    engine.say = answer
    async with attestor(engine) as docker:
        error = await fails(docker)
    assert reason in error
    assert str(engine.path) in error
    assert len(error) < 700


async def test_a_value_that_is_wrong_is_not_repeated_in_the_error(engine: EngineServer) -> None:
    engine.add(ID, Env=[{"secret": "hunter2"}])
    async with attestor(engine) as docker:
        error = await fails(docker)
    assert "Config.Env.0" in error
    assert "hunter2" not in error


async def test_a_first_process_that_is_gone(engine: EngineServer) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    engine.add(ID, pid=child.pid)
    async with attestor(engine) as docker:
        assert "the container's first by the engine's word: No such process" in await fails(docker)


@pytest.mark.parametrize("cgroup", [b"0::/\n", f"1:a:/docker/{ID}\n2:b:/docker/{OTHER}\n".encode()])
async def test_a_first_process_in_no_container(
    engine: EngineServer, monkeypatch: pytest.MonkeyPatch, cgroup: bytes
) -> None:
    engine.add(ID)
    monkeypatch.setattr(_processes, "_read", lambda *_: cgroup)
    async with attestor(engine) as docker:
        assert f"process {os.getpid()}, the container's first" in await fails(docker)


async def test_a_container_that_never_runs(
    engine: EngineServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_containers, "PAUSES_SECONDS", (0.0,))
    engine.add(ID, pid=0)
    async with attestor(engine) as docker:
        assert "does not run" in await fails(docker)
    assert engine.inspected == [ID, ID]


async def test_a_container_reported_as_running_a_moment_late(
    engine: EngineServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = engine.add(ID, pid=0)

    def start_it(*_arguments: object) -> None:
        answer["State"]["Pid"] = os.getpid()

    monkeypatch.setattr(_containers, "PAUSES_SECONDS", (0.0, 0.0))
    loop = asyncio.get_running_loop()
    async with attestor(engine) as docker:
        engine.hold.clear()
        asking = loop.create_task(docker.attest(caller()))
        while not engine.inspected:
            await asyncio.sleep(0)
        engine.hold.set()
        while len(engine.inspected) < 2:
            await asyncio.sleep(0)
        start_it()
        assert values(await asking)


async def test_one_that_does_not_answer_fails_in_bounded_time(
    engine: EngineServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_engine, "ANSWER_SECONDS", 0.1)
    engine.hold.clear()
    async with attestor(engine) as docker:
        assert "cannot be asked: no answer in time" in await fails(docker)
    assert DockerAttestor.timeout > 3


# --- one request for many, and none for what is known --------------------------------------------


async def test_200_callers_of_one_container_cost_one_request(engine: EngineServer) -> None:
    engine.add(ID)
    engine.hold.clear()
    async with attestor(engine) as docker:
        async with asyncio.TaskGroup() as tasks:
            asked = [tasks.create_task(docker.attest(caller())) for _ in range(200)]
            while not engine.inspected:
                await asyncio.sleep(0.001)
            engine.hold.set()
        assert all(values(each.result()) for each in asked)
        assert values(await docker.attest(caller()))
    assert engine.inspected == [ID]


async def test_one_who_gives_up_does_not_harm_the_others(engine: EngineServer) -> None:
    engine.add(ID)
    engine.hold.clear()
    async with attestor(engine) as docker, asyncio.TaskGroup() as tasks:
        impatient, patient = (tasks.create_task(docker.attest(caller())) for _ in range(2))
        while not engine.inspected:
            await asyncio.sleep(0.001)
        impatient.cancel()
        engine.hold.set()
        assert values(await patient)
    assert engine.inspected == [ID]


async def known(docker: DockerAttestor, engine: EngineServer) -> None:
    """Ask once, and see to it that the answer is kept."""
    await docker.attest(caller())
    await docker.attest(caller())
    assert engine.inspected == [ID]


async def lost(docker: DockerAttestor, engine: EngineServer) -> None:
    """Ask, keep the answer, and lose the engine."""
    await known(docker, engine)
    await engine.stop()
    await until(lambda: not docker._docker._open)


async def test_a_change_that_the_engine_reports_is_seen(engine: EngineServer) -> None:
    engine.add(ID)
    async with attestor(engine) as docker:
        await known(docker, engine)
        engine.containers[ID]["Name"] = "/renamed"
        await engine.change(OTHER)
        assert "container_name:web" in values(await docker.attest(caller()))
        await engine.change(ID)
        await until(lambda: not docker._docker._kept)
        assert "container_name:renamed" in values(await docker.attest(caller()))
    assert engine.inspected == [ID, ID]


async def test_events_from_before_the_engine_listened_are_asked_for(engine: EngineServer) -> None:
    engine.add(ID)
    before = time.time()  # noqa: TID251 - what the engine would compare it with
    async with attestor(engine) as docker:
        await known(docker, engine)
    assert before - 10 < engine.since[0] < before


async def test_a_change_while_it_is_asked_is_not_lost(engine: EngineServer) -> None:
    engine.add(ID)
    engine.hold.clear()
    async with attestor(engine) as docker, asyncio.TaskGroup() as tasks:
        asking = tasks.create_task(docker.attest(caller()))
        await until(lambda: engine.inspected)
        assert docker._docker._unchanged == {ID}
        await engine.change(ID)
        await until(lambda: not docker._docker._unchanged)
        engine.hold.set()
        await asking
        await docker.attest(caller())
    assert engine.inspected == [ID, ID]


async def test_what_is_known_ends_with_the_containers_first_process(engine: EngineServer) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    engine.add(ID, pid=child.pid)
    async with attestor(engine) as docker:
        await known(docker, engine)
        child.communicate(b"\n")
        engine.add(ID)["Name"] = "/restarted"
        assert "container_name:restarted" in values(await docker.attest(caller()))
    assert engine.inspected == [ID, ID]


async def test_a_dead_engine_leaves_what_is_known_and_nothing_else(engine: EngineServer) -> None:
    engine.add(ID)
    async with attestor(engine) as docker:
        await lost(docker, engine)
        assert "container_name:web" in values(await docker.attest(caller()))
        another = caller(cgroup=f"0::/system.slice/docker-{OTHER}.scope\n".encode())
        assert "cannot be asked" in await fails(docker, another)


async def test_back_again_the_engine_is_asked_anew(engine: EngineServer) -> None:
    engine.add(ID)
    async with attestor(engine) as docker:
        await lost(docker, engine)
        engine.containers[ID]["Name"] = "/renamed"
        await engine.start()
        assert "container_name:renamed" in values(await docker.attest(caller()))
        await asyncio.wait_for(engine.watched.wait(), 10)
        await until(lambda: docker._docker._open)
        await docker.attest(caller())
        asked = len(engine.inspected)
        await docker.attest(caller())
        assert len(engine.inspected) == asked


async def test_what_was_known_before_an_engine_came_back_does_not_outlive_it(
    engine: EngineServer,
) -> None:
    engine.add(ID)
    async with attestor(engine) as docker:
        await lost(docker, engine)
        await engine.start()
        await until(lambda: docker._docker._open)
        await engine.stop()
        await until(lambda: not docker._docker._open)
        assert "cannot be asked" in await fails(docker)


@pytest.mark.parametrize(
    "event", [b"nonsense\n", b"{}\n", b'{"Actor": {"ID": "' + b"x" * (3 << 20) + b'"}}\n']
)
async def test_events_that_make_no_sense_end_the_belief_in_what_is_kept(
    engine: EngineServer, event: bytes
) -> None:
    engine.add(ID)
    async with attestor(engine) as docker:
        await known(docker, engine)
        era = docker._docker._era
        await engine.tell(event)
        await until(lambda: docker._docker._era > era)
        assert values(await docker.attest(caller()))
    assert engine.inspected == [ID, ID]


async def test_an_engine_without_events_is_asked_each_time(
    engine: EngineServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def no_events(_self: object, _request: web.Request) -> web.Response:
        return web.Response(status=500)

    await engine.stop()
    monkeypatch.setattr(EngineServer, "_events", no_events)
    await engine.start()
    engine.add(ID)
    async with attestor(engine) as docker:
        await docker.attest(caller())
        await docker.attest(caller())
    assert engine.inspected == [ID, ID]


async def test_no_more_than_so_many_are_kept(
    engine: EngineServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_containers, "KEPT", 1)
    engine.add(ID)
    async with attestor(engine) as docker:
        await known(docker, engine)
        kept = docker._docker._kept[ID]
        engine.add(OTHER)
        another = f"0::/docker/{OTHER}\n".encode()
        with kernel_says(another):
            assert values(await docker.attest(caller(another)))
        assert list(docker._docker._kept) == [OTHER]
        assert not kept.init.is_alive


async def test_a_first_process_that_dies_while_it_is_looked_at(
    engine: EngineServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read may then be of whoever has its PID now."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    engine.add(ID, pid=child.pid)
    looked = _processes._read

    def look(directory: int, name: str) -> bytes:
        content = looked(directory, name)
        if name == "stat":
            child.communicate(b"\n")
        return content

    monkeypatch.setattr(_processes, "_read", look)
    async with attestor(engine) as docker:
        assert "the container's first by the engine's word, has exited" in await fails(docker)
