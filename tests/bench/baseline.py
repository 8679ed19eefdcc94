"""The baseline: a bare grpc.aio server on a Unix socket that answers with given bytes.

`python baseline.py SOCKET DIRECTORY`: the directory has a file for each method, named like it. On
SIGUSR1 every open stream gets its message again, as at a change of the bundle.

With `gated` as third argument the same server is behind the agent's gate, which relays to it and
checks who sent each byte, and does nothing else. It tells what an agent costs at the least if its
gate owns the bytes.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path
from typing import TypeAlias

import grpc
import structlog

from agent.admission import Admission, Limits
from agent.daemon import new_event_loop
from agent.door import Door
from agent.gate import Gate
from agent.listener import Listener, SocketFile
from agent.signals import UNHEARD
from agent.turnstile import Turnstile

SERVICE = "SpiffeWorkloadAPI"
STREAMING = frozenset({"FetchX509SVID", "FetchX509Bundles", "FetchJWTBundles"})
GATED = "gated"
Context: TypeAlias = "grpc.aio.ServicerContext[bytes, bytes]"
_PLENTY = 1_000_000
_PATIENCE_SECONDS = 60.0


class Bare:
    """The methods. `push` sends the messages of all open streams again."""

    def __init__(self, answers: dict[str, bytes]) -> None:
        self.gate: Gate | None = None
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

        async def unary(_raw: bytes, context: Context) -> bytes:
            self._begin(context)
            return answer

        async def stream(_raw: bytes, context: Context) -> None:
            self._begin(context)
            while True:
                changed = self._changed
                await context.write(answer)
                await changed.wait()

        if name in STREAMING:
            return grpc.unary_stream_rpc_method_handler(stream)
        return grpc.unary_unary_rpc_method_handler(unary)

    def _begin(self, context: Context) -> None:
        if self.gate is not None:  # it lets no other call pass before it knows of this one
            self.gate.begin_call(context.peer())


async def serve(socket: str, answers: dict[str, bytes], *, gated: bool) -> None:
    """Serve until killed. The streams stay open, as the agent's do."""
    bare, server = Bare(answers), grpc.aio.server()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, bare.push)
    server.add_generic_rpc_handlers((bare.handlers(),))
    inner = f"{socket}i" if gated else socket
    server.add_insecure_port(f"unix:{inner}")
    await server.start()
    if gated:
        listener = Listener(SocketFile(path=Path(socket), mode=0o600))
        bare.gate = _gate(inner)
        bare.gate.start(listener.socket)
    print("ready", flush=True)  # noqa: T201 - the bench waits for it
    await server.wait_for_termination()


def _gate(inner: str) -> Gate:
    loop = asyncio.get_running_loop()
    door = Door(
        Admission(
            Limits(
                connections=_PLENTY,
                connections_per_user=_PLENTY,
                streams=_PLENTY,
                streams_per_user=_PLENTY,
                attestations=_PLENTY,
                attestations_per_user=_PLENTY,
            )
        ),
        Turnstile(loop, _PLENTY, UNHEARD),
        lambda _caller, _refusal: None,
    )
    return Gate(loop, inner, door, structlog.get_logger(), _PATIENCE_SECONDS)


if __name__ == "__main__":
    files = Path(sys.argv[2]).iterdir()
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        answers = {file.name: file.read_bytes() for file in files}
        runner.run(serve(sys.argv[1], answers, gated=GATED in sys.argv[3:]))
