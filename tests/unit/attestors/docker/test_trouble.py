"""The docker attestor against an engine that lies, dawdles, or is not there."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys

import pytest
from aiohttp import web

from attestors.docker import DockerAttestor
from attestors.lib import containers, processes
from attestors.lib import engine as engine_module
from tests.support.engine_server import EngineServer, as_nobody
from tests.support.findings import values
from tests.unit.attestors.docker.conftest import ID, OTHER, attestor, caller, fails


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
        (say(body=b"x" * (engine_module.ANSWER_BYTES + 1)), "longer than 4194304 bytes"),
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
    monkeypatch.setattr(processes, "_read", lambda *_: cgroup)
    async with attestor(engine) as docker:
        assert f"process {os.getpid()}, the container's first" in await fails(docker)


async def test_a_container_that_never_runs(
    engine: EngineServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(containers, "PAUSES_SECONDS", (0.0,))
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

    monkeypatch.setattr(containers, "PAUSES_SECONDS", (0.0, 0.0))
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
    monkeypatch.setattr(engine_module, "ANSWER_SECONDS", 0.1)
    engine.hold.clear()
    async with attestor(engine) as docker:
        assert "cannot be asked: no answer in time" in await fails(docker)
    assert DockerAttestor.timeout > 3


async def test_a_first_process_that_dies_while_it_is_looked_at(
    engine: EngineServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read may then be of whoever has its PID now."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    engine.add(ID, pid=child.pid)
    looked = processes._read

    def look(directory: int, name: str) -> bytes:
        content = looked(directory, name)
        if name == "stat":
            child.communicate(b"\n")
        return content

    monkeypatch.setattr(processes, "_read", look)
    async with attestor(engine) as docker:
        assert "the container's first by the engine's word, has exited" in await fails(docker)
