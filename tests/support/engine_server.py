"""A fake container engine API in this process, with answers that the test sets."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import tempfile
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from aiohttp import web

from attestors.lib.containers import Containers
from attestors.lib.engine import EngineClient
from attestors.lib.processes import ContainerInit, read_at

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def containers(
    socket: str,
    own_cgroup: bytes,
    *,
    cgroup: bytes,
    read: Callable[[int, str], bytes] = read_at,
    **options: Any,
) -> Containers:
    """Return the Containers of an engine; the first process of each container is in `cgroup`."""

    def read_init(directory: int, name: str) -> bytes:
        return cgroup if name == "cgroup" else read(directory, name)

    return Containers(
        EngineClient(socket),
        own_cgroup,
        open_init=partial(ContainerInit.open, read=read_init),
        **options,
    )


@contextmanager
def as_nobody() -> Iterator[None]:
    """Run a block without the permissions of root."""
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)


class EngineServer:
    """Serves `/containers/ID/json` and `/events` on a Unix socket; an asynchronous context manager.

    `containers` are the answers by ID; `say` replaces them; `hold` delays every answer until it is
    set.
    """

    def __init__(self, name: str = "engine.sock") -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="vouchd-eng-", dir="/tmp"))
        self.path = self.directory / name
        self.containers: dict[str, dict[str, Any]] = {}
        self.say: web.Response | None = None
        self.hold = asyncio.Event()
        self.hold.set()
        self.inspected: list[str] = []
        self.watchers: list[web.StreamResponse] = []
        self.watched = asyncio.Event()
        self.since: list[int] = []
        self.events_answer: web.Response | None = None
        """The answer in place of an event stream."""

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_exception: object) -> None:
        await self.stop()
        shutil.rmtree(self.directory)

    async def start(self) -> None:
        """Start or restart the server."""
        app = web.Application()
        app.router.add_get("/containers/{id}/json", self._inspect)
        app.router.add_get("/events", self._events)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
        await self._runner.setup()
        await web.UnixSite(self._runner, str(self.path)).start()

    async def stop(self) -> None:
        """Abort every connection and remove the socket."""
        self.hold.set()
        for watcher in self.watchers:
            if watcher._req is not None and watcher._req.transport is not None:
                watcher._req.transport.abort()
        await self._runner.cleanup()
        self.watchers.clear()
        self.watched.clear()
        self.path.unlink(missing_ok=True)

    def add(self, container_id: str, pid: int | None = None, **config: Any) -> dict[str, Any]:
        """Add a container with this first process (default: this one), and return its answer."""
        answer = {
            "Id": container_id,
            "Name": "/web",
            "Image": "sha256:" + "1" * 64,
            "State": {"Pid": os.getpid() if pid is None else pid},
            "Config": {"Image": "nginx:1", "Labels": {"tier": "front"}, "Env": ["A=1"], **config},
        }
        self.containers[container_id] = answer
        return answer

    async def tell(self, event: bytes) -> None:
        """Send raw bytes on every event stream."""
        for watcher in self.watchers:
            with suppress(ConnectionError):
                await watcher.write(event)

    async def change(self, container_id: str) -> None:
        """Report a change of a container."""
        event = {"Type": "container", "Action": "rename", "Actor": {"ID": container_id}}
        await self.tell(json.dumps(event).encode() + b"\n")

    async def _inspect(self, request: web.Request) -> web.StreamResponse:
        self.inspected.append(request.match_info["id"])
        await self.hold.wait()
        if self.say is not None:
            # A response object can be sent once.
            return web.Response(
                status=self.say.status, body=self.say.body, headers=self.say.headers
            )
        answer = self.containers.get(request.match_info["id"])
        if answer is None:
            return web.json_response({"message": "No such container"}, status=404)
        return web.json_response(answer)

    async def _events(self, request: web.Request) -> web.StreamResponse:
        if self.events_answer is not None:
            return web.Response(status=self.events_answer.status)
        response = web.StreamResponse()
        await response.prepare(request)
        self.watchers.append(response)
        self.since.append(int(request.query["since"]))
        self.watched.set()
        closed = asyncio.get_running_loop().create_future()
        try:
            await closed
        finally:
            if response in self.watchers:
                self.watchers.remove(response)
        return response
