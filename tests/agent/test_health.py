"""gRPC health of a whole agent: every client sees that the agent cannot sign."""

from __future__ import annotations

import asyncio
import datetime as dt
import gc
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from agent.client.endpoint import endpoint_uri
from agent.clock import SystemClock
from agent.service import daemon
from agent.service.sd_notify import ServiceManager
from agent.service.wiring import Host
from tests.support.agent import SAFETY_SECONDS
from tests.support.fakes import FakeLog
from tests.support.settings import settings

SERVING = HealthCheckResponse.SERVING
NOT_SERVING = HealthCheckResponse.NOT_SERVING


class WrongClock(SystemClock):
    """A clock that is `slow` by so much, and sleeps a hundredth of the time."""

    def __init__(self) -> None:
        self.slow = dt.timedelta()

    def now(self) -> dt.datetime:
        return super().now() - self.slow

    async def sleep(self, seconds: float) -> None:
        await super().sleep(seconds / 100)


@pytest.fixture
def directory() -> Iterator[Path]:
    """A short path: unix(7) allows 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="vouchd-", dir="/tmp") as name:
        yield Path(name)


@pytest.fixture
def collector() -> Iterator[None]:
    """The daemon changes the garbage collector of its process, here that of the tests."""
    thresholds = gc.get_threshold()
    yield
    gc.set_threshold(*thresholds)
    gc.unfreeze()


@pytest.mark.usefixtures("collector")
async def test_check_and_watch_show_that_the_authority_cannot_sign(directory: Path) -> None:
    """The clock of the host is set to a time before the authority is valid, and back."""
    clock, lines, ready = WrongClock(), FakeLog(), asyncio.Event()
    (directory / "entries.yaml").write_text("entries: []\n")
    socket = directory / "agent.sock"
    wanted = settings(
        data_dir=str(directory / "data"),
        socket_path=str(socket),
        entries=[str(directory / "entries.yaml")],
    )
    host = Host(
        log=lines.log,
        audit=lines.write_audit,
        manager=ServiceManager(),
        ready=lambda _address: ready.set(),
        reread=lambda: wanted,
        relog=lambda _changed: None,
        clock=clock,
    )
    async with asyncio.timeout(SAFETY_SECONDS), asyncio.TaskGroup() as tasks:
        agent = tasks.create_task(daemon.serve(wanted, host))
        await ready.wait()
        async with grpc.aio.insecure_channel(endpoint_uri(socket)) as channel:
            health: Any = health_pb2_grpc.HealthStub(channel)
            watch = health.Watch(HealthCheckRequest())
            statuses = [(await watch.read()).status]
            clock.slow = dt.timedelta(days=3650)
            statuses.append((await watch.read()).status)
            assert (await health.Check(HealthCheckRequest())).status == NOT_SERVING
            clock.slow = dt.timedelta()
            statuses.append((await watch.read()).status)
            watch.cancel()
        agent.cancel()
    assert statuses == [SERVING, NOT_SERVING, SERVING]
