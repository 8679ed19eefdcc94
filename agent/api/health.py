"""gRPC health (grpc.health.v1): SERVING while `/ready` says ready, for Check and for Watch.

Any process may ask, without a security header and without an identity, as probes have neither.

grpcio's own servicer holds a lock while it writes to a Watch, so one client that does not read its
stream would block every other Check and Watch.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, TypeAlias

import grpc
from grpc_health.v1 import health, health_pb2_grpc
from grpc_health.v1.health_pb2 import HealthCheckResponse

from agent.errors import PeerError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import NoReturn

    from grpc.aio import ServicerContext
    from grpc_health.v1.health_pb2 import HealthCheckRequest

    from agent.api.guard import CallerTable
    from agent.clock import Clock

SERVICE = health.SERVICE_NAME
# The server as a whole (grpc.health.v1).
WHOLE_SERVER = ""
# How soon an open Watch shows that the agent is ready no more, or ready again.
REFRESH_SECONDS = 1.0

HealthContext: TypeAlias = "ServicerContext[HealthCheckRequest, HealthCheckResponse]"


class Health(health_pb2_grpc.HealthServicer):
    """The status of the services given by name, and of the server as a whole.

    Args:
        callers: counts each call on its connection.
        services: the names that Check and Watch know.
        not_ready_because: the reasons why the agent cannot serve; none while it is ready.
        refresh_seconds: how often `run` looks at them.
    """

    def __init__(
        self,
        callers: CallerTable,
        services: Sequence[str],
        not_ready_because: Callable[[], Sequence[str]],
        refresh_seconds: float = REFRESH_SECONDS,
    ) -> None:
        self._callers = callers
        self._services = frozenset({WHOLE_SERVER, *services})
        self._not_ready_because = not_ready_because
        self._refresh_seconds = refresh_seconds
        self._stopping = False
        self._ready = False
        self._changed = asyncio.Event()

    async def Check(  # noqa: N802 - the method's name in the protocol
        self, request: HealthCheckRequest, context: HealthContext
    ) -> HealthCheckResponse:
        """See grpc.health.v1."""
        begin_call(self._callers, context.peer())
        self.refresh()
        status = self._status(request.service)
        if status == HealthCheckResponse.SERVICE_UNKNOWN:  # an error here, a status in Watch
            await context.abort(grpc.StatusCode.NOT_FOUND, "there is no such service")
        return HealthCheckResponse(status=status)

    async def Watch(self, request: HealthCheckRequest, context: HealthContext) -> None:  # noqa: N802
        """See grpc.health.v1."""
        begin_call(self._callers, context.peer())
        self.refresh()
        sent = None
        while True:
            changed, status = self._changed, self._status(request.service)
            if status != sent:
                await context.write(HealthCheckResponse(status=status))
                sent = status
            await changed.wait()

    def _status(self, service: str) -> int:
        if service not in self._services:
            return HealthCheckResponse.SERVICE_UNKNOWN
        return HealthCheckResponse.SERVING if self._ready else HealthCheckResponse.NOT_SERVING

    def refresh(self) -> None:
        """Look whether the agent is ready, and wake every Watch if that has changed."""
        ready = not self._stopping and not self._not_ready_because()
        if ready is not self._ready:
            self._ready = ready
            self._changed.set()
            self._changed = asyncio.Event()

    async def run(self, clock: Clock) -> NoReturn:
        """Refresh every second: the authority may expire without an event."""
        while True:
            self.refresh()
            await clock.sleep(self._refresh_seconds)

    def stop(self) -> None:
        """Be NOT_SERVING from now on: the agent stops."""
        self._stopping = True
        self.refresh()


def begin_call(callers: CallerTable, peer: str) -> None:
    """Count a call that needs no identity, even if the kernel cannot name its caller."""
    with suppress(PeerError):
        callers.begin_call(peer)
