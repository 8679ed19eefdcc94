"""The kubelet, asked for its pods from a thread with an event loop of its own.

So neither TLS nor the parsing of a long list takes time of the agent's event loop; and because a
thread that computes keeps others from the interpreter, this one pauses after every slice of work.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp

from attestors._http import HttpError, get
from attestors._pods import PodList, PodReader
from attestors._shared import SharedWork
from attestors.api import AttestorError

if TYPE_CHECKING:
    from attestors._pods import Pod
    from attestors.k8s import KubeletOptions

ANSWER_SECONDS = 10.0
# 110 pods a node are usual; 10,000 of the largest that are common.
LIST_BYTES = 256 << 20
# From the beginning of one fetch to that of the next.
SPACING_SECONDS = 0.5
# A thread that wants the interpreter waits for a slice at most, and gets it in the pause.
SLICE_SECONDS = 0.001
PAUSE_SECONDS = 0.0005
_REFUSED = frozenset({401, 403})
_ADVICE = "; these credentials need `get` on nodes/proxy, or on nodes/pods from Kubernetes 1.33 on"


class PodLists:
    """Pod lists, fetched one at a time for all who wait. It owns the kubelet's client."""

    def __init__(self, kubelet: Kubelet) -> None:
        self._kubelet = kubelet
        self._fetching: SharedWork[None, None] = SharedWork()
        self._began = float("-inf")
        self._latest: tuple[float, PodList] = (float("-inf"), PodList(()))

    async def since(self, moment: float) -> PodList:
        """A list whose fetch began at this time of the event loop, or later.

        Raises:
            AttestorError: the kubelet does not give one.
        """
        while self._latest[0] < moment:
            await self._fetching.get(None, self._fetch)
        return self._latest[1]

    async def close(self) -> None:
        """End what is under way."""
        await self._fetching.close()
        await asyncio.to_thread(self._kubelet.close)

    async def _fetch(self) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(self._began + SPACING_SECONDS - loop.time())
        began = self._began = loop.time()
        self._latest = (began, await self._kubelet.pods())


class Kubelet:
    """Owns a thread, its event loop and the connection; `close` ends them."""

    def __init__(self, options: KubeletOptions) -> None:
        self._options = options
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._session: aiohttp.ClientSession | None = None
        self._files: tuple[object, ...] = ()

    async def pods(self) -> PodList:
        """What runs on this node, by the kubelet's word.

        Raises:
            AttestorError: it cannot be asked, or its answer makes no sense.
        """
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(
                target=self._loop.run_forever, name="kubelet", daemon=True
            )
            self._thread.start()
        asked = asyncio.run_coroutine_threadsafe(self._pods(), self._loop)
        return await asyncio.wrap_future(asked)

    def close(self) -> None:
        """End the thread. May wait for it a moment, so not on an event loop."""
        if self._loop is None or self._thread is None:
            return
        asyncio.run_coroutine_threadsafe(self._hang_up(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._loop = None

    # --- in the thread ----------------------------------------------------------------------------

    async def _pods(self) -> PodList:
        options = self._options
        try:
            session, headers = await self._connect()
            async with get(
                session, options.url, headers=headers, server_hostname=options.server_name
            ) as response:
                return PodList(tuple(await _read(response)))
        except HttpError as error:
            advice = _ADVICE if error.status in _REFUSED else ""
            raise AttestorError(f"the kubelet at {options.url}: {error}{advice}") from error
        except AttestorError as error:
            raise AttestorError(f"the kubelet at {options.url}: {error}") from error

    async def _connect(self) -> tuple[aiohttp.ClientSession, dict[str, str]]:
        """A session by the files as they are now, and the headers of one request."""
        options = self._options
        files = tuple(map(_version, (options.ca_file, options.certificate_file, options.key_file)))
        if self._session is None or files != self._files:
            await self._hang_up()
            self._files = files
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=_tls(options), limit=1),
                headers={"Accept": "application/json", "Accept-Encoding": "identity"},
                auto_decompress=False,
                timeout=aiohttp.ClientTimeout(total=ANSWER_SECONDS),
            )
        token = _token(options.token_file)
        return self._session, {"Authorization": f"Bearer {token}"} if token else {}

    async def _hang_up(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None


async def _read(response: aiohttp.ClientResponse) -> list[Pod]:
    reader, pods, size = PodReader(), [], 0
    began = time.monotonic()
    async for chunk in response.content.iter_any():
        size += len(chunk)
        if size > LIST_BYTES:
            raise AttestorError(f"the pod list is longer than {LIST_BYTES} bytes")
        for pod in reader.feed(chunk):
            pods.append(pod)
            if time.monotonic() - began > SLICE_SECONDS:
                await asyncio.sleep(PAUSE_SECONDS)
                began = time.monotonic()
    reader.close()
    return pods


def _tls(options: KubeletOptions) -> ssl.SSLContext | bool:
    if options.read_only_port is not None:
        return True
    try:
        context = ssl.create_default_context(cafile=options.ca_file)
        if options.certificate_file is not None and options.key_file is not None:
            context.load_cert_chain(options.certificate_file, options.key_file)
    except (OSError, ssl.SSLError) as error:
        raise AttestorError(f"its CA or client certificate cannot be loaded: {error}") from error
    return context


def _token(path: str | None) -> str:
    try:
        return "" if path is None else Path(path).read_text("ascii").strip()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not ASCII"
        raise AttestorError(f"its token cannot be read from {path}: {reason}") from error


def _version(path: str | None) -> object:
    """What changes when a file does; mounted secrets are changed by a link."""
    if path is None:
        return None
    try:
        status = os.stat(path)  # noqa: PTH116 - a Path would be made for this alone
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
