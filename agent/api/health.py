"""gRPC health on the public socket: for anybody, without header or identity."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, TypeAlias

from grpc_health.v1 import health

from agent.errors import PeerError

if TYPE_CHECKING:
    from grpc.aio import ServicerContext
    from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

    from agent.api.context import CallerTable


Context: TypeAlias = "ServicerContext[HealthCheckRequest, HealthCheckResponse]"


class Health(health.aio.HealthServicer):
    """The library's servicer; a check counts as a call, so that a probe is no odd connection."""

    def __init__(self, callers: CallerTable) -> None:
        super().__init__()
        self._callers = callers

    async def Check(  # noqa: N802 - the method's name in the protocol
        self, request: HealthCheckRequest, context: Context
    ) -> HealthCheckResponse:
        """See grpc.health.v1."""
        self._begin(context)
        return await super().Check(request, context)

    async def Watch(self, request: HealthCheckRequest, context: Context) -> None:  # noqa: N802
        """See grpc.health.v1."""
        self._begin(context)
        await super().Watch(request, context)

    def _begin(self, context: Context) -> None:
        with suppress(PeerError):
            self._callers.begin_call(context.peer())
