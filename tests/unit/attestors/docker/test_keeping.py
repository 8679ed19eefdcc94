"""One request to the engine for many callers, and none for what is known."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time

import pytest
from aiohttp import web

from attestors.docker import DockerAttestor
from attestors.lib import containers
from tests.support.engine_server import EngineServer, kernel_says
from tests.support.findings import until, values
from tests.unit.attestors.docker.conftest import ID, OTHER, attestor, caller, fails


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
    monkeypatch.setattr(containers, "KEPT", 1)
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
