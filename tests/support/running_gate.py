"""A gate on a real socket that serves methods of the test, and clients on the same event loop."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from agent.gate.gate import Gate
from agent.kernel.sender import stamp_senders
from agent.limits.quotas import REASONS
from agent.telemetry.metrics import Metrics, Words
from agent.transport.connection import CONNECTION_TIMES, Connection, ConnectionTimes
from agent.transport.grpc_protocol import frame_message
from agent.transport.http2_server import Http2Server
from agent.transport.service import Call, Method, Services, StatusCode, StatusError
from tests.support.agent import SAFETY_SECONDS
from tests.support.fakes import FakeLog, admission
from tests.support.raw import ConnectionEndedError, RawCall, StayingClient
from tests.support.scrape import series

if TYPE_CHECKING:
    from agent.kernel.caller import Caller
    from agent.transport.half import Half

MAX_REQUEST_BYTES = 32 * 1024


@dataclass
class _HalfUnderTest:
    make: Callable[[], Half] = Http2Server


HALF = _HalfUnderTest()
"""The HTTP/2 half of each running gate; the fixture `half` of the tests' conftest sets it."""


class _Sink:
    """The part of a socket that a RawClient writes to."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self.writer = writer

    def sendall(self, data: bytes) -> None:
        self.writer.write(data)


class Client(StayingClient):
    """A gRPC client on asyncio streams."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        super().__init__(cast("socket.socket", _Sink(writer)))
        self.reader = reader
        self.writer = writer

    @property
    def socket(self) -> Any:
        return self.writer.get_extra_info("socket")

    async def take(self) -> None:
        """Receive once, and answer what HTTP/2 wants answered.

        Raises:
            ConnectionEndedError: the gate closed the connection.
        """
        try:
            async with asyncio.timeout(SAFETY_SECONDS):
                data = await self.reader.read(65536)
        except ConnectionError as error:
            raise ConnectionEndedError from error
        if not data:
            raise ConnectionEndedError
        self.receive(data)

    async def answer(self, stream: int, number: int = 0) -> bytes:
        """Wait for a message of a call."""
        call = self.calls[stream]
        while len(call.messages) <= number:
            assert call.status is None, f"status {call.status}: {call.details}"
            await self.take()
        return call.messages[number]

    async def ended(self, stream: int) -> RawCall:
        """Wait for the end of a call."""
        while self.calls[stream].status is None:
            await self.take()
        return self.calls[stream]

    async def until_cut(self) -> None:
        """Return when the gate has closed the connection."""
        try:
            while True:
                await self.take()
        except ConnectionEndedError:
            self.close()

    def close(self) -> None:
        self.writer.close()


@dataclass
class Observer:
    """Every error becomes UNKNOWN with its text; the ends of calls are kept."""

    ends: list[StatusCode] = field(default_factory=list)

    def failed(self, _call: Call, error: Exception) -> StatusError:
        return error if isinstance(error, StatusError) else StatusError(StatusCode(2), str(error))

    def ended(self, _call: Call, code: StatusCode) -> None:
        self.ends.append(code)


class Handlers:
    """The methods of the test, below `/t/`: Echo, Who, Open, Prove, Large, Late,
    Shared.
    """

    def __init__(self, gate: Gate) -> None:
        self.callers: list[Caller] = []
        self.stop = asyncio.Event()
        self.observer = Observer()
        self.open = 0
        self.shared = b""
        self._gate = gate

    def services(self) -> Services:
        answers = {
            b"/t/Echo": self._echo,
            b"/t/Who": self._who,
            b"/t/Open": self._open,
            b"/t/Prove": self._prove,
            b"/t/Large": self._large,
            b"/t/Late": self._late,
            b"/t/Shared": self._share,
        }
        return Services(
            unknown=_method(self._unknown),
            observer=self.observer,
            methods={path: _method(answer) for path, answer in answers.items()},
        )

    async def _echo(self, call: Call) -> None:
        await call.send(frame_message(call.request))

    async def _who(self, call: Call) -> None:
        self.callers.append(call.caller())
        await call.send(frame_message(str(self.callers[-1].credentials.pid).encode()))

    async def _open(self, call: Call) -> None:
        """Send the request back, and hold the stream open until the gate stops."""
        self.open += 1
        try:
            await call.send(frame_message(call.request))
            await self.stop.wait()
        finally:
            self.open -= 1
        raise StatusError(StatusCode.UNAVAILABLE, "stopping")

    async def _prove(self, call: Call) -> None:
        await self._gate.prove_sender(call.caller())
        await call.send(frame_message(b"proven"))

    async def _large(self, call: Call) -> None:
        await call.send(frame_message(bytes(int(call.request))))

    async def _late(self, call: Call) -> None:
        """Send a large response once the test lets it."""
        self.open += 1
        await self.stop.wait()
        await self._large(call)

    async def _share(self, call: Call) -> None:
        """Send a large response that all calls share."""
        if not self.shared:
            self.shared = frame_message(bytes(int(call.request)))
        await call.send(self.shared)

    async def _unknown(self, _call: Call) -> None:
        raise StatusError(StatusCode.UNIMPLEMENTED, "there is no such method")


def _method(answer: Callable[[Call], Coroutine[Any, Any, None]]) -> Method:
    return Method(answer=answer, max_request_bytes=MAX_REQUEST_BYTES)


@dataclass
class RunningGate:
    """A gate with its socket, handlers, log and metrics."""

    gate: Gate
    path: Path
    handlers: Handlers
    lines: FakeLog
    metrics: Metrics

    def refusals(self) -> dict[str, float]:
        counted = series(self.metrics.text()).items()
        return {name: count for name, count in counted if "refusals" in name and count}

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_unix_connection(self.path)

    async def client(self) -> Client:
        """Return a client that has begun its connection."""
        client = Client(*await self.connect())
        client.start()
        return client

    async def caller(self) -> tuple[Client, Caller]:
        """Return a client, and the caller as which the gate knows it."""
        client = await self.client()
        await client.answer(client.call("/t/Who", b""))
        return client, self.handlers.callers[-1]

    def connections(self) -> list[Connection]:
        return list(self.gate._connections)


def listen(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.bind(str(path))
    stamp_senders(sock)
    sock.listen(4096)
    sock.setblocking(False)
    return sock


@asynccontextmanager
async def running_gate(
    tmp_path: Path, *, times: ConnectionTimes = CONNECTION_TIMES, **admission_options: Any
) -> AsyncIterator[RunningGate]:
    listener = listen(tmp_path / "socket")
    lines = FakeLog()
    metrics = Metrics(Words(limits=REASONS))
    gate = Gate(
        asyncio.get_running_loop(),
        admission(**admission_options, lines=lines, signals=metrics),
        lines.log,
        metrics,
        times,
        HALF.make,
    )
    handlers = Handlers(gate)
    gate.start(listener, handlers.services())
    try:
        yield RunningGate(gate, tmp_path / "socket", handlers, lines, metrics)
    finally:
        gate.close()
        listener.close()


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def until(readiness: object) -> None:
    assert callable(readiness)
    async with asyncio.timeout(SAFETY_SECONDS):
        while not readiness():
            await asyncio.sleep(0.001)
