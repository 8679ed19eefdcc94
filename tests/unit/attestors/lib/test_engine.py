"""Engines that cannot be reached, or whose answers are not those of the API."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import web

from attestors.lib.engine import ANSWER_BYTES, EngineClient
from attestors.lib.http import UnreachableError
from tests.support.engine_caller import ID, attestor, caller, fails
from tests.support.engine_server import EngineServer, as_nobody
from tests.support.findings import until


async def test_engine_that_is_not_there_is_named(engine: EngineServer) -> None:
    podmans = f"0::/machine.slice/libpod-{ID}.scope\n".encode()
    async with attestor(engine) as docker:
        error = await fails(docker, caller(cgroup=podmans))
    assert f"{engine.directory}/none.sock cannot be asked: No such file or directory" in error


async def test_socket_that_the_agent_may_not_use_comes_with_advice(engine: EngineServer) -> None:
    engine.path.chmod(0)
    async with attestor(engine) as docker:
        with as_nobody():
            error = await fails(docker)
    assert f"{engine.path} cannot be asked: Permission denied; run the agent as root" in error


def answer(status: int = 200, body: bytes | str = b"") -> web.Response:
    return web.Response(status=status, body=body, content_type="application/json")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (answer(body=b"x" * (ANSWER_BYTES + 1)), "longer than 4194304 bytes"),
        (answer(body=b"<html>"), "its answer is not a container's: all of it: Invalid JSON"),
        (answer(body=b"[" * 100_000), "its answer is not a container's"),
        (answer(body=b'{"Id": 1}'), "its answer is not a container's: Id: "),
        (answer(body='{"Id": "", "State": {"Pid": 4294967296}, "Config": {}}'), "State.Pid: "),
        (answer(body='{"Id": "", "State": {"Pid": -1}, "Config": {}}'), "State.Pid: "),
        (answer(body='{"Id": "b", "State": {"Pid": 1}, "Config": {}}'), "it answered for 'b'"),
        (answer(400, b'{"message":"client version 9.9 is too new"}'), "version 9.9 is too new"),
        (answer(500, b"x" * 100_000), "HTTP status 500: 'xxx"),
        (answer(301, b""), "HTTP status 301"),
    ],
)
async def test_answer_that_is_not_a_containers_is_a_failure_with_a_reason(
    engine: EngineServer, answer: web.Response, reason: str
) -> None:
    engine.say = answer
    async with attestor(engine) as docker:
        error = await fails(docker)
    assert reason in error
    assert str(engine.path) in error
    assert len(error) < 700


async def test_error_does_not_quote_a_wrong_value(engine: EngineServer) -> None:
    """It may be a secret."""
    engine.add(ID, Env=[{"secret": "hunter2"}])
    async with attestor(engine) as docker:
        error = await fails(docker)
    assert "Config.Env.0" in error
    assert "hunter2" not in error


async def test_engine_that_does_not_answer_fails_at_the_time_limit(engine: EngineServer) -> None:
    engine.hold.clear()
    client = EngineClient(str(engine.path), answer_seconds=0.1)
    with pytest.raises(UnreachableError, match="cannot be asked: no answer in time"):
        await client.inspect(ID)
    await client.close()


async def test_events_of_the_last_seconds_are_requested(engine: EngineServer) -> None:
    """Docker answers before it subscribes to its own events."""
    client = EngineClient(str(engine.path), now=lambda: 1000.9)

    async def first_change() -> str:
        return await anext(aiter(client.changes(lambda: None)))

    async with asyncio.TaskGroup() as tasks:
        change = tasks.create_task(first_change())
        await until(lambda: engine.watchers)
        await engine.change(ID)
    assert change.result() == ID
    assert engine.since == [998]
    await client.close()
