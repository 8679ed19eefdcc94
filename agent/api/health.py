"""gRPC's own services, health and reflection: for anybody, without header or identity.

They are the library's, but that a call is noted as one: behind it others of the same user wait, and
a probe is no connection without a call.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, TypeAlias

from grpc_health.v1 import health
from grpc_reflection.v1alpha import reflection

from agent.errors import PeerError

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Sequence

    from grpc.aio import ServicerContext
    from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
    from grpc_reflection.v1alpha.reflection_pb2 import (
        ServerReflectionRequest,
        ServerReflectionResponse,
    )

    from agent.api.guard import CallerTable


ReflectionContext: TypeAlias = "ServicerContext[ServerReflectionRequest, ServerReflectionResponse]"
HealthContext: TypeAlias = "ServicerContext[HealthCheckRequest, HealthCheckResponse]"


class Health(health.aio.HealthServicer):
    """Tells whether the agent serves."""

    def __init__(self, callers: CallerTable) -> None:
        super().__init__()
        self._callers = callers

    async def Check(  # noqa: N802 - the method's name in the protocol
        self, request: HealthCheckRequest, context: HealthContext
    ) -> HealthCheckResponse:
        """See grpc.health.v1."""
        _begin(self._callers, context.peer())
        return await super().Check(request, context)

    async def Watch(self, request: HealthCheckRequest, context: HealthContext) -> None:  # noqa: N802
        """See grpc.health.v1."""
        _begin(self._callers, context.peer())
        await super().Watch(request, context)


class Reflection(reflection.aio.ReflectionServicer):
    """Tells which services there are."""

    def __init__(self, callers: CallerTable, services: Sequence[str]) -> None:
        super().__init__(services)
        self._callers = callers

    # What the library's types say of this generator is true of a coroutine.
    async def ServerReflectionInfo(  # type: ignore[override]  # noqa: N802 - the protocol's name
        self, requests: AsyncIterable[ServerReflectionRequest], context: ReflectionContext
    ) -> AsyncIterator[ServerReflectionResponse]:
        """See grpc.reflection.v1alpha."""
        _begin(self._callers, context.peer())
        answers = super().ServerReflectionInfo(requests, context)
        async for answer in answers:  # type: ignore[attr-defined]
            yield answer


def _begin(callers: CallerTable, peer: str) -> None:
    with suppress(PeerError):
        callers.begin_call(peer)
