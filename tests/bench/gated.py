"""The transport alone: the baseline's answers behind the agent's gate, without attestation.

The gate serves HTTP/2 and gRPC, checks the sender of each chunk, and asks the kernel for the caller
of each call. The costs are the least costs of an agent. The command line is that of baseline.py.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import structlog

from agent.errors import UnsupportedError
from agent.gate.admission import Admission
from agent.gate.gate import Gate
from agent.gate.listener import Listener, SocketFile
from agent.limits.fair_queue import FairQueue
from agent.limits.quotas import Limits, Quotas
from agent.signals import NO_SIGNALS
from agent.transport.grpc_protocol import frame_message
from agent.transport.service import Call, Method, Services, StatusCode, StatusError
from tests.bench.baseline import SERVICE, STREAMING, Answers, run

_PLENTY = 1_000_000_000
_MAX_REQUEST_BYTES = 32 * 1024


class Observer:
    """Notes nothing."""

    def failed(self, _call: Call, error: Exception) -> StatusError:
        return (
            error if isinstance(error, StatusError) else StatusError(StatusCode.UNKNOWN, "failed")
        )

    def ended(self, _call: Call, _code: StatusCode) -> None:
        return


async def serve(socket: str, answers: Answers) -> None:
    """Serve behind the gate."""
    listener = Listener(SocketFile(path=Path(socket), mode=0o600))
    changed = _Changes()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, changed.push)
    _gate().start(listener.socket, _services(answers, changed))
    print("ready", flush=True)  # noqa: T201 - the bench waits for it
    await asyncio.Event().wait()


class _Changes:
    """Has each open stream send its message again."""

    def __init__(self) -> None:
        self.next = asyncio.Event()

    def push(self) -> None:
        changed, self.next = self.next, asyncio.Event()
        changed.set()


def _services(answers: Answers, changes: _Changes) -> Services:
    def method(name: str, answer: bytes) -> Method:
        framed = frame_message(answer)

        async def unary(call: Call) -> None:
            call.caller()
            await call.send(framed)

        async def stream(call: Call) -> None:
            call.caller()
            while True:
                changed = changes.next
                await call.send(framed)
                await changed.wait()

        return _method(stream if name in STREAMING else unary)

    async def unknown(_call: Call) -> None:
        raise UnsupportedError("there is no such method")

    return Services(
        unknown=_method(unknown),
        observer=Observer(),
        methods={
            f"/{SERVICE}/{name}".encode(): method(name, answer) for name, answer in answers.items()
        },
    )


def _method(answer: Callable[[Call], Coroutine[Any, Any, None]]) -> Method:
    return Method(answer=answer, max_request_bytes=_MAX_REQUEST_BYTES)


def _gate() -> Gate:
    limits = Limits(
        connections=_PLENTY,
        connections_per_user=_PLENTY,
        streams=_PLENTY,
        streams_per_user=_PLENTY,
        attestations=_PLENTY,
        attestations_per_user=_PLENTY,
        buffer_bytes=_PLENTY,
        buffer_bytes_per_user=_PLENTY,
    )
    loop = asyncio.get_running_loop()
    admission = Admission(
        Quotas(limits), FairQueue(loop, _PLENTY, NO_SIGNALS), lambda _caller, _refusal: None
    )
    return Gate(loop, admission, structlog.get_logger())


if __name__ == "__main__":
    run(serve)
