"""A gate between a real public socket and an inner echo server."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.gate.gate import Gate
from agent.kernel.sender import stamp_senders
from agent.limits.quotas import REASONS
from agent.telemetry.metrics import Metrics, Words
from tests.support.agent import SAFETY_SECONDS
from tests.support.fakes import FakeLog, admission
from tests.support.scrape import series

# As long as a client's preface, and a whole SETTINGS frame of a server: valid in both directions.
HELLO = bytes([0, 0, 15, 4, 0, 0, 0, 0, 0]) + bytes(15)
FRAME = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])


@dataclass
class RunningGate:
    """A gate with its socket, log and metrics; `names`: peer names (tokens) at the inner server."""

    gate: Gate
    outer: socket.socket
    path: Path
    names: list[str]
    lines: FakeLog
    metrics: Metrics

    def refusals(self) -> dict[str, float]:
        counted = series(self.metrics.text()).items()
        return {name: count for name, count in counted if "refusals" in name and count}

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_unix_connection(self.path)

    async def connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, str]:
        """Open a connection to the inner server; return it with its peer name there."""
        before = len(self.names)
        reader, writer = await self.connect()
        writer.write(HELLO)
        assert await reader.readexactly(len(HELLO)) == HELLO
        return reader, writer, self.names[before]


def listen(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.bind(str(path))
    stamp_senders(sock)
    sock.listen(4096)
    sock.setblocking(False)
    return sock


@asynccontextmanager
async def running_gate(
    tmp_path: Path, *, first_request_seconds: float = 10.0, **admission_options: Any
) -> AsyncIterator[RunningGate]:
    names: list[str] = []
    echoes: set[asyncio.StreamWriter] = set()

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        name = writer.get_extra_info("peername")  # bytes if abstract, "" if there is none
        names.append("unix-abstract:" + name[1:].decode() if name else "unix:")
        echoes.add(writer)
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
        echoes.discard(writer)
        writer.close()

    server = await asyncio.start_unix_server(echo, tmp_path / "inner")
    outer = listen(tmp_path / "outer")
    lines = FakeLog()
    metrics = Metrics(Words(limits=REASONS))
    gate = Gate(
        asyncio.get_running_loop(),
        str(tmp_path / "inner"),
        admission(**admission_options, lines=lines, signals=metrics),
        lines.log,
        first_request_seconds,
        metrics,
    )
    gate.start(outer)
    yield RunningGate(gate, outer, tmp_path / "outer", names, lines, metrics)
    gate.close()
    outer.close()
    for writer in list(echoes):
        writer.close()
    server.close()
    await server.wait_closed()


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def until(readiness: object) -> None:
    assert callable(readiness)
    async with asyncio.timeout(SAFETY_SECONDS):
        while not readiness():
            await asyncio.sleep(0.001)
