"""gRPC health: has the same status as `/ready`, and no client can block another."""

from __future__ import annotations

import asyncio
import datetime as dt
from typing import Any

import pytest
from grpc_health.v1 import health_pb2

from agent.api.guard import Guard
from agent.api.health import SERVICE, Health
from agent.api.servers import make_public_services
from agent.errors import PeerError
from agent.kernel.caller import Caller
from agent.transport.service import StatusCode
from tests.support.fakes import FakeClock, FakeLog, quotas, settle
from tests.unit.api.conftest import CALLER, FakeCall

pb: Any = health_pb2  # its type stubs lack the method List

SECOND = dt.timedelta(seconds=1)
SERVING = pb.HealthCheckResponse.SERVING
NOT_SERVING = pb.HealthCheckResponse.NOT_SERVING
UNKNOWN = pb.HealthCheckResponse.SERVICE_UNKNOWN


class Watch(FakeCall):
    """A Watch; `blocked` is a client that does not read its stream."""

    def __init__(self, service: str = "", *, blocked: bool = False) -> None:
        super().__init__(f"/{SERVICE}/Watch", pb.HealthCheckRequest(service=service))
        self._blocked = blocked

    async def send(self, framed: bytes) -> None:
        await super().send(framed)
        if self._blocked:
            await asyncio.get_running_loop().create_future()

    @property
    def statuses(self) -> list[int]:
        return [each.status for each in self.responses(pb.HealthCheckResponse)]


class ServedHealth:
    """Health of the services a and b; `reasons` are why the agent is not ready."""

    def __init__(self) -> None:
        self.reasons: tuple[str, ...] = ()
        self.lines = FakeLog()
        self.health = Health(["a", "b"], lambda: self.reasons)
        guard = Guard(quotas(), self.lines.audit().refused, self.lines.log)
        self.services = make_public_services((), guard, self.health)

    async def call(
        self, method: str, raw: Any = b"", *, caller: Caller | PeerError = CALLER
    ) -> FakeCall:
        made = FakeCall(f"/{SERVICE}/{method}", raw, caller=caller)
        await made.of(self.services)
        return made

    async def check(self, service: str = "", **options: Any) -> int:
        made = await self.call("Check", pb.HealthCheckRequest(service=service), **options)
        [response] = made.responses(pb.HealthCheckResponse)
        return int(response.status)

    async def list(self) -> dict[str, int]:
        [response] = (await self.call("List")).responses(pb.HealthListResponse)
        return {name: each.status for name, each in response.statuses.items()}


@pytest.mark.parametrize("service", ["", "a", "b"])
async def test_check_returns_the_present_readiness(service: str) -> None:
    served = ServedHealth()
    assert await served.check(service) == SERVING
    served.reasons = ("the authority cannot sign",)
    assert await served.check(service) == NOT_SERVING
    served.reasons = ()
    assert await served.check(service) == SERVING


async def test_list_returns_the_present_readiness_of_each_service() -> None:
    served = ServedHealth()
    assert await served.list() == {"": SERVING, "a": SERVING, "b": SERVING}
    served.reasons = ("the authority cannot sign",)
    assert await served.list() == {"": NOT_SERVING, "a": NOT_SERVING, "b": NOT_SERVING}


async def test_check_of_an_unknown_service_is_not_found() -> None:
    made = await ServedHealth().call("Check", pb.HealthCheckRequest(service="c"))
    assert (made.code, made.sent) == (StatusCode.NOT_FOUND, [])


@pytest.mark.parametrize("method", ["Check", "List", "Watch"])
async def test_a_malformed_request_is_an_invalid_argument(method: str) -> None:
    made = await ServedHealth().call(method, b"\xff\xff")
    assert made.code is StatusCode.INVALID_ARGUMENT


async def test_watch_sends_each_change_once() -> None:
    served, clock = ServedHealth(), FakeClock()
    whole, one, unknown = Watch(), Watch("a"), Watch("c")
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(each.of(served.services)) for each in (whole, one, unknown)]
        running.append(tasks.create_task(served.health.run(clock)))
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
        running = [tasks.create_task(each.of(served.services)) for each in (blocked, other)]
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


async def test_a_caller_that_the_kernel_cannot_name_may_check() -> None:
    served = ServedHealth()
    assert await served.check(caller=PeerError("unknown")) == SERVING
    assert not served.lines.lines
