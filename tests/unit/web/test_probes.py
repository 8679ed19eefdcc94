"""The HTTP server for monitoring: three paths, and a bound for the cost of any client."""

from __future__ import annotations

import asyncio
import select
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path, PurePath

import pytest

from agent.config.addresses import LoopbackAddress
from agent.errors import StartupError
from agent.rate_limit import RateLimit
from agent.web.probes import Probes, expose
from tests.support import scrape
from tests.support.agent import SAFETY_SECONDS
from tests.support.fakes import FakeLog

GET = b"GET /live HTTP/1.1\r\nHost: x\r\n\r\n"


@asynccontextmanager
async def served(
    where: PurePath | LoopbackAddress,
    *,
    text: Callable[[], str] = lambda: "vouchd_entries 1\n",
    not_ready_because: Callable[[], Sequence[str]] = tuple,
    lines: FakeLog | None = None,
    connection_seconds: float = SAFETY_SECONDS,
    connection_limit: RateLimit | None = None,
) -> AsyncIterator[None]:
    log = (lines or FakeLog()).log
    probes = Probes(
        text,
        not_ready_because,
        log,
        connection_seconds=connection_seconds,
        connection_limit=connection_limit,
    )
    async with expose(probes, where, None):
        yield


async def ask(where: scrape.Where, request: bytes) -> tuple[int, bytes]:
    return await asyncio.to_thread(scrape.ask, where, request)


async def get(where: scrape.Where, path: str) -> tuple[int, str]:
    return await asyncio.to_thread(scrape.get, where, path)


async def test_the_unix_socket_answers_and_is_removed_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "t"
    async with served(path):
        assert await get(path, "/metrics") == (200, "vouchd_entries 1\n")
        assert await get(path, "/live") == (200, "live\n")
        assert await get(path, "/ready") == (200, "ready\n")
        assert path.stat().st_mode & 0o777 == 0o600
    assert not path.exists()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_the_loopback_port_answers(host: str) -> None:
    port = scrape.free_port()
    async with served(LoopbackAddress(host=host, port=port)):
        assert await get((host, port), "/metrics") == (200, "vouchd_entries 1\n")


async def test_ready_names_the_reason_while_the_agent_is_not_ready(tmp_path: Path) -> None:
    async with served(tmp_path / "t", not_ready_because=lambda: ("the authority cannot sign",)):
        assert await get(tmp_path / "t", "/ready") == (
            503,
            "not ready\nthe authority cannot sign\n",
        )
        assert await get(tmp_path / "t", "/live") == (200, "live\n")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        (b"GET /metrics/../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        (b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n", 405),
        (b"GET /" + b"a" * 10_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET /live HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 10_000 + b"\r\n\r\n", 400),
        (b"GET /live HTTP/1.1\r\nHost: x\r\n" + b"A: a\r\n" * 1000 + b"\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n", 400),
    ],
    ids=["root", "dots", "post", "long-line", "long-header", "many-headers", "tls"],
)
async def test_other_requests_are_refused_and_log_nothing(
    tmp_path: Path, request_: bytes, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    lines = FakeLog()
    async with served(tmp_path / "t", lines=lines):
        found, body = await ask(tmp_path / "t", request_)
    assert found == status
    assert b"Traceback" not in body
    assert not caplog.records
    assert not lines.lines


async def test_a_connection_serves_one_request(tmp_path: Path) -> None:
    async with served(tmp_path / "t"):
        status, body = await ask(tmp_path / "t", GET * 50)
    assert (status, body) == (200, b"live\n")


async def test_a_client_that_sends_no_whole_request_is_disconnected(tmp_path: Path) -> None:
    async with served(tmp_path / "t", connection_seconds=0.05):
        assert await ask(tmp_path / "t", b"") == (0, b"")
        assert await ask(tmp_path / "t", GET[:-2]) == (0, b"")


async def test_a_client_that_does_not_read_is_disconnected(tmp_path: Path) -> None:
    async with served(tmp_path / "t", text=lambda: "x" * 10_000_000, connection_seconds=0.05):
        with scrape.connect(tmp_path / "t") as sock:
            sock.sendall(GET.replace(b"live", b"metrics"))
            await asyncio.to_thread(_wait_for_the_end, sock)
            received = sum(map(len, iter(lambda: _read(sock), b"")))
    assert 0 < received < 10_000_000


async def test_connections_over_the_rate_limit_are_closed_at_once(tmp_path: Path) -> None:
    async with served(tmp_path / "t", connection_limit=RateLimit(3, 1e6)):
        answers = [await get(tmp_path / "t", "/live") for _ in range(5)]
    assert answers == [(200, "live\n")] * 3 + [(0, "")] * 2


async def test_an_internal_error_is_logged_and_not_sent_to_the_client(tmp_path: Path) -> None:
    def broken() -> str:
        raise ZeroDivisionError("secret")

    lines = FakeLog()
    async with served(tmp_path / "t", text=broken, lines=lines):
        status, body = await get(tmp_path / "t", "/metrics")
        assert (status, "secret" in body) == (500, False)
        assert await get(tmp_path / "t", "/live") == (200, "live\n")
    assert lines.of("internal error")


async def test_open_connections_end_with_the_server(tmp_path: Path) -> None:
    async with served(tmp_path / "t"):
        sock = scrape.connect(tmp_path / "t")
        assert (await get(tmp_path / "t", "/live"))[0] == 200
    with sock:
        assert _read(sock) == b""


async def test_the_error_about_a_port_in_use_names_the_way_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
        with pytest.raises(StartupError, match=rf"127.0.0.1:{port}: .* a free port, or the path"):
            async with served(LoopbackAddress(host="127.0.0.1", port=port)):
                pass


async def test_a_socket_in_use_is_not_replaced(tmp_path: Path) -> None:
    async with served(tmp_path / "t"):
        with pytest.raises(StartupError, match="another agent is serving"):
            async with served(tmp_path / "t"):
                pass
        assert (await get(tmp_path / "t", "/live"))[0] == 200


def _wait_for_the_end(sock: socket.socket) -> None:
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)
    assert poll.poll(1000 * SAFETY_SECONDS)


def _read(sock: socket.socket) -> bytes:
    try:
        return sock.recv(65536)
    except ConnectionResetError:
        return b""
