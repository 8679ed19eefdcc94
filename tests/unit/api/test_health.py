"""gRPC health: has the same status as `/ready`, and no client can block another."""

from __future__ import annotations

import asyncio
import datetime as dt
from typing import Any, cast

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from agent.api.health import Health
from agent.errors import PeerError
from tests.support.fakes import FakeClock, settle
from tests.unit.api.conftest import Aborted, Context, Table

SECOND = dt.timedelta(seconds=1)
SERVING = HealthCheckResponse.SERVING
NOT_SERVING = HealthCheckResponse.NOT_SERVING
UNKNOWN = HealthCheckResponse.SERVICE_UNKNOWN


class Watch(Context):
    """A call that keeps the statuses sent; `blocked` is a client that does not read its stream."""

    def __init__(self, *, blocked: bool = False) -> None:
        super().__init__()
        self.statuses: list[int] = []
        self._blocked = blocked

    async def write(self, message: Any) -> None:
        self.statuses.append(message.status)
        if self._blocked:
            await asyncio.get_running_loop().create_future()


class ServedHealth:
    """Health of the services a and b; `reasons` are why the agent is not ready."""

    def __init__(self, table: Table | None = None) -> None:
        self.reasons: tuple[str, ...] = ()
        self.table = table or Table()
        self.health = Health(self.table, ["a", "b"], lambda: self.reasons)

    async def check(self, service: str = "") -> int:
        request = HealthCheckRequest(service=service)
        return (await self.health.Check(request, cast("Any", Context()))).status

    async def watch(self, watch: Watch, service: str = "") -> None:
        await self.health.Watch(HealthCheckRequest(service=service), cast("Any", watch))


@pytest.mark.parametrize("service", ["", "a", "b"])
async def test_check_returns_the_present_readiness(service: str) -> None:
    served = ServedHealth()
    assert await served.check(service) == SERVING
    served.reasons = ("the authority cannot sign",)
    assert await served.check(service) == NOT_SERVING
    served.reasons = ()
    assert await served.check(service) == SERVING


async def test_check_of_an_unknown_service_is_not_found() -> None:
    context = Context()
    with pytest.raises(Aborted):
        await ServedHealth().health.Check(HealthCheckRequest(service="c"), cast("Any", context))
    assert context.code is grpc.StatusCode.NOT_FOUND


async def test_watch_sends_each_change_once() -> None:
    served, clock = ServedHealth(), FakeClock()
    whole, one, unknown = Watch(), Watch(), Watch()
    async with asyncio.TaskGroup() as tasks:
        running = [
            tasks.create_task(served.watch(whole)),
            tasks.create_task(served.watch(one, "a")),
            tasks.create_task(served.watch(unknown, "c")),
            tasks.create_task(served.health.run(clock)),
        ]
        await clock.advance(SECOND)
        served.reasons = ("the authority cannot sign",)
        await clock.advance(2 * SECOND)
        served.reasons = ()
        await clock.advance(2 * SECOND)
        for each in running:
            each.cancel()
    assert whole.statuses == one.statuses == [SERVING, NOT_SERVING, SERVING]
    assert unknown.statuses == [UNKNOWN]


async def test_a_client_that_does_not_read_its_watch_blocks_no_other() -> None:
    served, blocked, other = ServedHealth(), Watch(blocked=True), Watch()
    async with asyncio.TaskGroup() as tasks:
        running = [
            tasks.create_task(served.watch(blocked)),
            tasks.create_task(served.watch(other)),
        ]
        await settle()
        served.reasons = ("the authority cannot sign",)
        assert await served.check() == NOT_SERVING
        await settle()
        for each in running:
            each.cancel()
    assert other.statuses == [SERVING, NOT_SERVING]


async def test_an_agent_that_stops_is_not_serving_whatever_its_parts_say() -> None:
    served = ServedHealth()
    assert await served.check() == SERVING
    served.health.stop()
    assert await served.check() == NOT_SERVING


async def test_a_check_counts_as_a_call_even_without_a_known_caller() -> None:
    served = ServedHealth(Table(PeerError("unknown")))
    assert await served.check() == SERVING
    assert served.table.begun == 1
