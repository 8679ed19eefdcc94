"""gRPC health (grpc.health.v1): SERVING while `/ready` says ready, for Check, List and Watch.

Any process may ask, without a security header and without an identity, as probes have neither.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from grpc_health.v1 import health_pb2

from agent.api.methods import decode, encode, served
from agent.errors import NotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import NoReturn

    from agent.clock import Clock
    from agent.transport.service import Call, Method

pb: Any = health_pb2  # its type stubs lack the method List

_DESCRIPTOR = pb.DESCRIPTOR.services_by_name["Health"]
SERVICE: str = _DESCRIPTOR.full_name
# The server as a whole (grpc.health.v1).
WHOLE_SERVER = ""
# How soon an open Watch shows that the agent is ready no more, or ready again.
REFRESH_SECONDS = 1.0


class Health:
    """The status of the services given by name, and of the server as a whole.

    Args:
        services: the names that have a status.
        not_ready_because: the reasons why the agent cannot serve; none while it is ready.
        refresh_seconds: how often `run` looks at them.
    """

    def __init__(
        self,
        services: Sequence[str],
        not_ready_because: Callable[[], Sequence[str]],
        refresh_seconds: float = REFRESH_SECONDS,
    ) -> None:
        self._services = (WHOLE_SERVER, *services)
        self._not_ready_because = not_ready_because
        self._refresh_seconds = refresh_seconds
        self._stopping = False
        self._ready = False
        self._changed = asyncio.Event()

    def methods(self) -> Mapping[bytes, Method]:
        """Return the methods of grpc.health.v1."""
        return served(_DESCRIPTOR, {"Check": self._check, "List": self._list, "Watch": self._watch})

    async def _check(self, request_type: type[Any], call: Call) -> None:
        service = decode(request_type, call.request).service
        self.refresh()
        status = self._status(service)
        if status == pb.HealthCheckResponse.SERVICE_UNKNOWN:  # an error here, a status in Watch
            raise NotFoundError("there is no such service")
        await call.send(encode(pb.HealthCheckResponse(status=status)))

    async def _list(self, request_type: type[Any], call: Call) -> None:
        decode(request_type, call.request)
        self.refresh()
        response = pb.HealthListResponse()
        for service in self._services:
            response.statuses[service].status = self._status(service)
        await call.send(encode(response))

    async def _watch(self, request_type: type[Any], call: Call) -> None:
        service = decode(request_type, call.request).service
        self.refresh()
        sent = None
        while True:
            changed, status = self._changed, self._status(service)
            if status != sent:
                await call.send(encode(pb.HealthCheckResponse(status=status)))
                sent = status
            await changed.wait()

    def _status(self, service: str) -> int:
        if service not in self._services:
            status = pb.HealthCheckResponse.SERVICE_UNKNOWN
        elif self._ready:
            status = pb.HealthCheckResponse.SERVING
        else:
            status = pb.HealthCheckResponse.NOT_SERVING
        return int(status)

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
