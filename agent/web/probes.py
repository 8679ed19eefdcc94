"""Serve `/metrics`, `/live` and `/ready` over HTTP.

The server listens on a Unix socket, or on a loopback port, which every user of the host can reach.
So the answers hold no secrets, and each client's cost is bounded: one short request per connection,
a few seconds, and a rate limit of connections. A flood of the port can make scrapes fail; the Unix
socket is protected by its mode.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from agent.config.addresses import LoopbackAddress
from agent.errors import StartupError
from agent.gate.listener import Listener, SocketFile
from agent.rate_limit import RateLimit
from agent.telemetry.throttled_log import ThrottledLog

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence
    from pathlib import PurePath

    from structlog.typing import FilteringBoundLogger

# The rate limit of connections; a scrape every few seconds and some probes are usual. With
# CONNECTION_SECONDS it also bounds the number of open connections: 70.
AT_ONCE = 20
SECONDS_EACH = 0.1
# The time limit of a connection, from accept to the last byte of the answer.
CONNECTION_SECONDS = 5.0
BACKLOG = 64
PRIVATE_MODE = 0o600
GROUP_MODE = 0o660
# aiohttp logs a traceback for each malformed request: any user could fill the log.
_QUIET = logging.getLogger("vouchd.exposition")
_QUIET.disabled = True
# A request of Prometheus has some 300 bytes.
MAX_LINE_BYTES = 2048
MAX_HEADERS = 32
READ_BYTES = 4096


class Probes:
    """Answers HTTP requests on a listening socket from `start` until `close`, which closes it.

    Args:
        text: returns the metrics.
        not_ready_because: returns the reasons why the agent is not ready; empty if it is.
        log: takes internal errors.
        connection_seconds: the time limit of a connection.
        connection_limit: the rate limit of connections, of all clients together.
    """

    def __init__(
        self,
        text: Callable[[], str],
        not_ready_because: Callable[[], Sequence[str]],
        log: FilteringBoundLogger,
        connection_seconds: float = CONNECTION_SECONDS,
        connection_limit: RateLimit | None = None,
    ) -> None:
        self._text = text
        self._not_ready_because = not_ready_because
        self._throttled = ThrottledLog(log)
        self._connection_seconds = connection_seconds
        self._loop = asyncio.get_running_loop()
        self._limit = connection_limit or RateLimit(AT_ONCE, SECONDS_EACH)
        self._http = web.Server(self._answer)
        self._listening: asyncio.Server | None = None

    async def start(self, listener: socket.socket) -> None:
        """Start to answer."""
        if listener.family is socket.AF_UNIX:
            listening = await self._loop.create_unix_server(self._connect, sock=listener)
        else:
            listening = await self._loop.create_server(self._connect, sock=listener)
        self._listening = listening

    async def close(self) -> None:
        """Close all connections."""
        if self._listening is not None:
            self._listening.close()
        await self._http.shutdown(0)

    def _connect(self) -> asyncio.Protocol:
        if self._limit.take(None, self._loop.time()) is None:
            return _Refusal()
        return _Connection(
            self._http,
            self._connection_seconds,
            loop=self._loop,
            logger=_QUIET,
            max_line_size=MAX_LINE_BYTES,
            max_field_size=MAX_LINE_BYTES,
            max_headers=MAX_HEADERS,
            read_bufsize=READ_BYTES,
            lingering_time=0,
            auto_decompress=False,
        )

    async def _answer(self, request: web.BaseRequest) -> web.Response:
        try:
            response = self._respond(request)
        except Exception:  # noqa: BLE001 - a defect must fail this request only
            self._throttled.exception(
                "internal error", None, where="telemetry request", path=request.path
            )
            response = web.Response(status=500, text="internal error; see the agent's log\n")
        response.force_close()
        return response

    def _respond(self, request: web.BaseRequest) -> web.Response:
        if request.method not in {"GET", "HEAD"}:
            return web.Response(status=405, headers={"Allow": "GET, HEAD"})
        match request.path:
            case "/metrics":
                body = self._text().encode()
                return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})
            case "/live":
                return web.Response(text="live\n")
            case "/ready":
                return self._readiness()
            case _:
                return web.Response(status=404, text="paths: /metrics, /live and /ready\n")

    def _readiness(self) -> web.Response:
        if reasons := self._not_ready_because():
            return web.Response(status=503, text="\n".join(["not ready", *reasons, ""]))
        return web.Response(text="ready\n")


@asynccontextmanager
async def expose(
    probes: Probes, where: PurePath | LoopbackAddress, group: str | None
) -> AsyncIterator[None]:
    """Answer on an address during a block; `group` may open the Unix socket.

    Raises:
        StartupError: the address cannot be bound.
    """
    with _port(where) if isinstance(where, LoopbackAddress) else _file(where, group) as listener:
        await probes.start(listener)
        try:
            yield
        finally:
            await probes.close()


@contextmanager
def _file(path: PurePath, group: str | None) -> Iterator[socket.socket]:
    mode = PRIVATE_MODE if group is None else GROUP_MODE
    listener = Listener(SocketFile(path=Path(path), mode=mode, group=group))
    try:
        yield listener.socket
    finally:
        listener.close()


@contextmanager
def _port(address: LoopbackAddress) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    try:
        bound = socket.create_server((address.host, address.port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise StartupError(
            f"cannot listen on {address}: {error.strerror}; give telemetry.listen an address with a"
            " free port, or the path of a Unix socket"
        ) from error
    with bound:
        yield bound


class _Connection(web.RequestHandler):
    """A connection with a time limit."""

    def __init__(self, server: web.Server, seconds: float, **options: Any) -> None:
        super().__init__(server, **options)
        self._seconds = seconds

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        abort = cast("asyncio.Transport", transport).abort
        self._deadline = self._loop.call_later(self._seconds, abort)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._deadline.cancel()
        super().connection_lost(exc)


class _Refusal(asyncio.Protocol):
    """A connection over the rate limit: closed at once."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast("asyncio.Transport", transport).abort()
