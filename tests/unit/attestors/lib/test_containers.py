"""One question serves many callers, a kept answer saves it, and the kernel has to agree."""

from __future__ import annotations

import asyncio
import os
from contextlib import closing

import pytest
from aiohttp import web

from attestors.docker import DockerAttestor
from attestors.lib.cgroups import locate
from attestors.lib.containers import Containers
from attestors.lib.engine import EngineClient
from attestors.lib.processes import ContainerInit, read_at
from tests.support.engine_caller import CGROUP, ID, OTHER, attestor, caller, fails
from tests.support.engine_server import EngineServer
from tests.support.findings import until, values

# The kernel's upper limit of PIDs: no process has it.
NO_PID = 1 << 22
LOCATED = locate(CGROUP).container


async def test_200_callers_of_one_container_cost_one_question(engine: EngineServer) -> None:
    engine.add(ID)
    engine.hold.clear()
    async with attestor(engine) as docker:
        async with asyncio.TaskGroup() as tasks:
            asked = [tasks.create_task(docker.attest(caller())) for _ in range(200)]
            await until(lambda: engine.inspected)
            engine.hold.set()
        assert all(values(each.result()) for each in asked)
        assert values(await docker.attest(caller()))
    assert engine.inspected == [ID]


async def test_cancelled_caller_does_not_cancel_the_question_of_the_others(
    engine: EngineServer,
) -> None:
    engine.add(ID)
    engine.hold.clear()
    async with attestor(engine) as docker, asyncio.TaskGroup() as tasks:
        cancelled, other = (tasks.create_task(docker.attest(caller())) for _ in range(2))
        await until(lambda: engine.inspected)
        cancelled.cancel()
        engine.hold.set()
        assert values(await other)
    assert engine.inspected == [ID]


async def known(docker: DockerAttestor, engine: EngineServer) -> None:
    """Ask once, and check that the answer is kept."""
    await docker.attest(caller())
    await docker.attest(caller())
    assert engine.inspected == [ID]


async def lost(docker: DockerAttestor, engine: EngineServer) -> None:
    """Ask, keep the answer, and stop the engine."""
    await known(docker, engine)
    await engine.stop()
    await until(lambda: not docker._docker.is_following)


async def test_change_that_the_engine_reports_ends_the_answer(engine: EngineServer) -> None:
    engine.add(ID)
    async with attestor(engine) as docker:
        await known(docker, engine)
        engine.containers[ID]["Name"] = "/renamed"
        await engine.change(OTHER)
        assert "container_name:web" in values(await docker.attest(caller()))
        await engine.change(ID)
        await until(lambda: not docker._docker.kept)
        assert "container_name:renamed" in values(await docker.attest(caller()))
    assert engine.inspected == [ID, ID]


async def test_answer_is_not_kept_if_the_container_changed_meanwhile(engine: EngineServer) -> None:
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


class Mortal:
    """A first process whose pidfd is a pipe: it polls readable, as after an exit, once written."""

    def __init__(self) -> None:
        self._pidfd, self._end = os.pipe()

    def open(self, _pid: int, _own: bytes) -> ContainerInit:
        assert LOCATED is not None
        return ContainerInit(pidfd=os.dup(self._pidfd), container=LOCATED, started=0)

    def die(self) -> None:
        os.write(self._end, b"!")

    def close(self) -> None:
        os.close(self._pidfd)
        os.close(self._end)


async def test_answer_ends_with_the_first_process_of_the_container(engine: EngineServer) -> None:
    engine.add(ID)
    with closing(Mortal()) as init:
        of_engine = Containers(EngineClient(str(engine.path)), b"", open_init=init.open)
        assert LOCATED is not None
        for _ in range(2):
            assert "container_name:web" in (await of_engine.facts(LOCATED, 1) or ())
        assert engine.inspected == [ID]
        init.die()
        engine.containers[ID]["Name"] = "/restarted"
        assert "container_name:restarted" in (await of_engine.facts(LOCATED, 1) or ())
        await of_engine.close()
    assert engine.inspected == [ID, ID]


async def test_stopped_engine_leaves_the_kept_answers_and_no_others(engine: EngineServer) -> None:
    engine.add(ID)
    async with attestor(engine) as docker:
        await lost(docker, engine)
        assert "container_name:web" in values(await docker.attest(caller()))
        another = caller(cgroup=f"0::/system.slice/docker-{OTHER}.scope\n".encode())
        assert "cannot be asked" in await fails(docker, another)


async def test_engine_that_is_back_is_asked_anew(engine: EngineServer) -> None:
    engine.add(ID)
    async with attestor(engine) as docker:
        await lost(docker, engine)
        engine.containers[ID]["Name"] = "/renamed"
        await engine.start()
        assert "container_name:renamed" in values(await docker.attest(caller()))
        await until(lambda: docker._docker.is_following)
        await docker.attest(caller())
        asked = len(engine.inspected)
        await docker.attest(caller())
        assert len(engine.inspected) == asked


async def test_answer_from_before_a_restart_of_the_engine_is_not_used_after_the_next_stop(
    engine: EngineServer,
) -> None:
    engine.add(ID)
    async with attestor(engine) as docker:
        await lost(docker, engine)
        await engine.start()
        await until(lambda: docker._docker.is_following)
        await engine.stop()
        await until(lambda: not docker._docker.is_following)
        assert "cannot be asked" in await fails(docker)


@pytest.mark.parametrize(
    "event", [b"nonsense\n", b"{}\n", b'{"Actor": {"ID": "' + b"x" * (3 << 20) + b'"}}\n']
)
async def test_event_that_is_not_of_the_api_ends_the_kept_answers(
    engine: EngineServer, event: bytes
) -> None:
    engine.add(ID)
    async with attestor(engine) as docker:
        await known(docker, engine)
        await engine.tell(event)
        await until(lambda: len(engine.since) == 2)
        assert values(await docker.attest(caller()))
    assert engine.inspected == [ID, ID]


async def test_engine_without_events_is_asked_each_time(engine: EngineServer) -> None:
    engine.events_answer = web.Response(status=500)
    engine.add(ID)
    async with attestor(engine) as docker:
        await docker.attest(caller())
        await docker.attest(caller())
    assert engine.inspected == [ID, ID]


async def test_oldest_answer_over_the_limit_is_dropped_with_its_descriptor(
    engine: EngineServer,
) -> None:
    inits: list[ContainerInit] = []

    def open_init(pid: int, own: bytes) -> ContainerInit:
        for_id = [ID, OTHER][len(inits)]
        cgroup = f"0::/docker/{for_id}\n".encode()
        init = ContainerInit.open(
            pid, own, read=lambda at, name: cgroup if name == "cgroup" else read_at(at, name)
        )
        inits.append(init)
        return init

    of_engine = Containers(EngineClient(str(engine.path)), b"", kept=1, open_init=open_init)
    for each in (ID, OTHER):
        engine.add(each)
        container = locate(f"0::/docker/{each}\n".encode()).container
        assert container is not None
        assert await of_engine.facts(container, 1 << 60)
    assert of_engine.kept == {OTHER}
    assert [init.is_alive for init in inits] == [False, True]
    await of_engine.close()
    assert not inits[1].is_alive
    assert not of_engine.kept


# --- the first process ---------------------------------------------------------------------------


async def test_first_process_that_is_gone_is_a_failure(engine: EngineServer) -> None:
    engine.add(ID, pid=NO_PID)
    async with attestor(engine) as docker:
        error = await fails(docker)
    assert "names as the container's first, cannot be read: No such process" in error


@pytest.mark.parametrize(
    ("cgroup", "reason"),
    [
        (b"0::/\n", "is in no container"),
        (f"1:a:/docker/{ID}\n2:b:/docker/{OTHER}\n".encode(), "is not in one container"),
    ],
)
async def test_first_process_outside_a_container_is_a_failure(
    engine: EngineServer, cgroup: bytes, reason: str
) -> None:
    engine.add(ID)
    async with attestor(engine, cgroup) as docker:
        error = await fails(docker)
    assert f"process {os.getpid()}, which the engine names as the container's first, " in error
    assert reason in error


async def test_container_that_never_runs_is_a_failure(engine: EngineServer) -> None:
    engine.add(ID, pid=0)
    async with attestor(engine, pauses=(0.0,)) as docker:
        assert "does not run" in await fails(docker)
    assert engine.inspected == [ID, ID]


async def test_container_that_is_reported_as_running_late_is_asked_about_again(
    engine: EngineServer,
) -> None:
    answer = engine.add(ID, pid=0)
    async with attestor(engine, pauses=(0.0,) * 10_000) as docker, asyncio.TaskGroup() as tasks:
        asking = tasks.create_task(docker.attest(caller()))
        await until(lambda: len(engine.inspected) >= 2)
        assert not asking.done()
        answer["State"]["Pid"] = os.getpid()
        assert values(await asking)
