"""The baseline: a bare grpc.aio server on a Unix socket that answers with given bytes.

`python baseline.py SOCKET DIRECTORY`: the directory has a file for each method, with its name. On
SIGUSR1 each open stream gets its message again, as after a change of the bundle.

It imports nothing of the agent, since its start is measured too.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TypeAlias

import grpc

new_event_loop: Callable[[], asyncio.AbstractEventLoop]
try:
    from uvloop import new_event_loop
except ImportError:  # there is no wheel for this machine
    from asyncio import new_event_loop

SERVICE = "SpiffeWorkloadAPI"
STREAMING = frozenset({"FetchX509SVID", "FetchX509Bundles", "FetchJWTBundles"})
Answers: TypeAlias = dict[str, bytes]
Context: TypeAlias = "grpc.aio.ServicerContext[bytes, bytes]"


class Bare:
    """The methods of the server."""

    def __init__(self, answers: Answers) -> None:
        self._answers = answers
        self._changed = asyncio.Event()

    def push(self) -> None:
        """Send the message on each open stream again."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def handlers(self) -> grpc.GenericRpcHandler:
        """Return the gRPC handler of the methods."""
        return grpc.method_handlers_generic_handler(
            SERVICE, {name: self._handler(name) for name in self._answers}
        )

    def _handler(self, name: str) -> grpc.RpcMethodHandler[bytes, bytes]:
        answer = self._answers[name]

        async def unary(_raw: bytes, _context: Context) -> bytes:
            return answer

        async def stream(_raw: bytes, context: Context) -> None:
            while True:
                changed = self._changed
                await context.write(answer)
                await changed.wait()

        if name in STREAMING:
            return grpc.unary_stream_rpc_method_handler(stream)
        return grpc.unary_unary_rpc_method_handler(unary)


async def start(bare: Bare, socket: str) -> grpc.aio.Server:
    """Serve on a socket. Streams stay open, as the agent's do."""
    server = grpc.aio.server()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, bare.push)
    server.add_generic_rpc_handlers((bare.handlers(),))
    server.add_insecure_port(f"unix:{socket}")
    await server.start()
    return server


async def serve(socket: str, answers: Answers) -> None:
    """Print the ready line and serve."""
    server = await start(Bare(answers), socket)
    print("ready", flush=True)  # noqa: T201 - the bench waits for it
    await server.wait_for_termination()


def run(serving: Callable[[str, Answers], Coroutine[None, None, None]]) -> None:
    """Serve the responses that the command line names."""
    socket, directory = sys.argv[1:]
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        answers = {file.name: file.read_bytes() for file in Path(directory).iterdir()}
        runner.run(serving(socket, answers))


if __name__ == "__main__":
    run(serve)
