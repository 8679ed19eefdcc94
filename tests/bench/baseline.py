"""The baseline: a bare grpc.aio server on a Unix socket that answers with given bytes.

`python baseline.py SOCKET DIRECTORY`: the directory has a file for each method, named like it. On
SIGUSR1 every open stream gets its message again, as at a change of the bundle.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

import grpc

from agent.daemon import new_event_loop

SERVICE = "SpiffeWorkloadAPI"
STREAMING = frozenset({"FetchX509SVID", "FetchX509Bundles", "FetchJWTBundles"})


class Bare:
    """The methods. `push` sends the messages of all open streams again."""

    def __init__(self, answers: dict[str, bytes]) -> None:
        self._answers = answers
        self._changed = asyncio.Event()

    def push(self) -> None:
        """Each open stream gets its message again."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def handlers(self) -> grpc.GenericRpcHandler:
        """For the server."""
        return grpc.method_handlers_generic_handler(
            SERVICE, {name: self._handler(name) for name in self._answers}
        )

    def _handler(self, name: str) -> grpc.RpcMethodHandler[bytes, bytes]:
        answer = self._answers[name]

        async def unary(_raw: bytes, _context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
            return answer

        async def stream(_raw: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
            while True:
                changed = self._changed
                await context.write(answer)
                await changed.wait()

        if name in STREAMING:
            return grpc.unary_stream_rpc_method_handler(stream)
        return grpc.unary_unary_rpc_method_handler(unary)


async def serve(socket: str, answers: dict[str, bytes]) -> None:
    """Serve until killed. The streams stay open, as the agent's do."""
    bare, server = Bare(answers), grpc.aio.server()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, bare.push)
    server.add_generic_rpc_handlers((bare.handlers(),))
    server.add_insecure_port(f"unix:{socket}")
    await server.start()
    print("ready", flush=True)  # noqa: T201 - the bench waits for it
    await server.wait_for_termination()


if __name__ == "__main__":
    files = Path(sys.argv[2]).iterdir()
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(serve(sys.argv[1], {file.name: file.read_bytes() for file in files}))
