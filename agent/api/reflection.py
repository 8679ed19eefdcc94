"""gRPC server reflection: lists the services of a socket for every process that connects.

The service is grpcio's. Only the begin of each call is noted here: a connection without a call ends
with the log line "without a call", and the fair queue holds back the next calls of the same user.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from grpc_reflection.v1alpha import reflection

from agent.api.health import begin_call

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Sequence

    from grpc.aio import ServicerContext
    from grpc_reflection.v1alpha.reflection_pb2 import (
        ServerReflectionRequest,
        ServerReflectionResponse,
    )

    from agent.api.guard import CallerTable

SERVICE = reflection.SERVICE_NAME

ReflectionContext: TypeAlias = "ServicerContext[ServerReflectionRequest, ServerReflectionResponse]"


class Reflection(reflection.aio.ReflectionServicer):
    """grpc.reflection.v1alpha over the services given by name."""

    def __init__(self, callers: CallerTable, services: Sequence[str]) -> None:
        super().__init__(services)
        self._callers = callers

    # The stubs of the library call this generator a coroutine.
    async def ServerReflectionInfo(  # type: ignore[override]  # noqa: N802 - the protocol's name
        self, requests: AsyncIterable[ServerReflectionRequest], context: ReflectionContext
    ) -> AsyncIterator[ServerReflectionResponse]:
        """See grpc.reflection.v1alpha."""
        begin_call(self._callers, context.peer())
        answers = super().ServerReflectionInfo(requests, context)
        async for answer in answers:  # type: ignore[attr-defined]
            yield answer
