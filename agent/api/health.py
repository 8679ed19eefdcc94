"""gRPC health on the public socket: for anybody, without header or identity."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from grpc_health.v1 import health

from agent.errors import PeerError

if TYPE_CHECKING:
    from grpc.aio import ServicerContext
    from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

    from agent.api.context import CallerTable


class Health(health.aio.HealthServicer):
    """The library's servicer; a check counts as a call, so that a probe is no odd connection."""

    def __init__(self, callers: CallerTable) -> None:
        super().__init__()
        self._callers = callers

    async def Check(  # noqa: N802 - the method's name in the protocol
        self,
        request: HealthCheckRequest,
        context: ServicerContext[HealthCheckRequest, HealthCheckResponse],
    ) -> HealthCheckResponse:
        """See grpc.health.v1."""
        with suppress(PeerError):
            self._callers.begin_call(context.peer())
        return await super().Check(request, context)
