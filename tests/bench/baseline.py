"""The baseline: a bare grpc.aio server on a Unix socket that answers with given bytes."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import grpc

from agent.daemon import new_event_loop


async def serve(socket: str, response: bytes) -> None:
    """Serve until killed. The stream stays open, as the agent's does."""

    async def answer(_raw: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        await context.write(response)
        await asyncio.Event().wait()

    server = grpc.aio.server()
    server.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler(
                "SpiffeWorkloadAPI",
                {"FetchX509SVID": grpc.unary_stream_rpc_method_handler(answer)},
            ),
        )
    )
    server.add_insecure_port(f"unix:{socket}")
    await server.start()
    print("ready", flush=True)  # noqa: T201 - the bench waits for it
    await server.wait_for_termination()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(serve(sys.argv[1], Path(sys.argv[2]).read_bytes()))
