"""A client of the kubelet, in a thread with an event loop of its own.

TLS and the parser of a long list take no time of the agent's event loop. A thread that computes
holds the interpreter's lock, so this one pauses after each slice of work.
"""

from __future__ import annotations

import asyncio
import os
import re
import ssl
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self

import aiohttp
from pydantic import AfterValidator, Field, model_validator

from attestors.api import AttestorError, Options
from attestors.lib.http import HttpError, get
from attestors.lib.models import AbsolutePath
from attestors.lib.once import SharedWork
from attestors.lib.pods import PodList, PodReader

if TYPE_CHECKING:
    from collections.abc import Iterator

    from attestors.lib.cgroups import Container
    from attestors.lib.pods import Pod

ANSWER_SECONDS = 10.0
WAIT_SECONDS_MAX = 20.0
# The longest wait, and the request at its end.
LONGEST_SECONDS = WAIT_SECONDS_MAX + ANSWER_SECONDS
# How long a list is used.
FRESH_SECONDS = 5.0
# A node has 110 pods by default; this is enough for 10,000 large ones.
LIST_BYTES = 256 << 20
# From the begin of one request to the begin of the next.
SPACING_SECONDS = 0.5
# Another thread waits for the interpreter's lock for one slice at most, and gets it in the pause.
SLICE_SECONDS = 0.001
PAUSE_SECONDS = 0.0005
_REFUSED = frozenset({401, 403})
_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
_ADVICE = "; these credentials need `get` on nodes/proxy, or on nodes/pods from Kubernetes 1.33 on"


def _only_a_host(host: str) -> str:
    if "/" in host or host.count(":") == 1:
        raise ValueError(f"{host!r} is not a host name or address: leave out scheme and port")
    return host


_Port = Annotated[int, Field(ge=1, le=65535)]


class KubeletOptions(Options):
    """How to reach the kubelet."""

    node_name: str | None = Field(
        default=None, min_length=1, description="The node's name, as in the kubelet's certificate."
    )
    node_name_env: str | None = Field(
        default=None, min_length=1, description="The environment variable that holds node_name."
    )
    host: Annotated[str, AfterValidator(_only_a_host)] = Field(
        default="127.0.0.1", min_length=1, description="The kubelet's host name or address."
    )
    port: _Port = Field(default=10250, description="The kubelet's secure port.")
    read_only_port: _Port | None = Field(
        default=None, description="Use this port, without TLS: only if no other user can bind it."
    )
    ca_file: AbsolutePath = Field(
        default=f"{_ACCOUNT}/ca.crt", description="The CA of the kubelet's certificate."
    )
    token_file: AbsolutePath | None = Field(
        default=None,
        description=f"A bearer token. Default without a client certificate: {_ACCOUNT}/token.",
    )
    certificate_file: AbsolutePath | None = Field(
        default=None, description="A client certificate, instead of a token."
    )
    key_file: AbsolutePath | None = Field(
        default=None, description="The key of the client certificate."
    )
    wait_seconds: float = Field(
        default=5.0,
        ge=0,
        le=WAIT_SECONDS_MAX,
        description="How long a caller waits for its container to appear in the list.",
    )

    @property
    def url(self) -> str:
        """The URL of the pod list."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        if self.read_only_port is not None:
            return f"http://{host}:{self.read_only_port}/pods"
        return f"https://{host}:{self.port}/pods"

    @property
    def server_name(self) -> str | None:
        """The name that the kubelet's certificate must contain; None without TLS."""
        if self.read_only_port is not None:
            return None
        return self.node_name or os.environ.get(self.node_name_env or "")

    @property
    def bearer_file(self) -> str | None:
        """The file with the token; None if no token is sent."""
        if self.read_only_port is not None:
            return None
        return self.token_file or (None if self.certificate_file else f"{_ACCOUNT}/token")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.certificate_file is None) != (self.key_file is None):
            raise ValueError("certificate_file and key_file belong together: give both or none")
        if self.read_only_port is not None and (self.token_file or self.certificate_file):
            raise ValueError(
                "read_only_port needs no credentials: leave token_file and certificate_file out, "
                "or use the secure port"
            )
        if self.read_only_port is None and (self.node_name is None) == (self.node_name_env is None):
            raise ValueError(
                "give node_name or node_name_env: the name in the kubelet's certificate"
            )
        return self


class PodLists:
    """Pod lists, one request at a time for all waiters. It owns the kubelet's client.

    Raises:
        AttestorError: the environment variable for the node's name is not set.
    """

    def __init__(
        self,
        options: KubeletOptions,
        *,
        fresh_seconds: float = FRESH_SECONDS,
        spacing_seconds: float = SPACING_SECONDS,
        answer_seconds: float = ANSWER_SECONDS,
    ) -> None:
        if options.read_only_port is None and not options.server_name:
            raise AttestorError(f"${options.node_name_env} is not set: the node's name")
        self._kubelet = Kubelet(options, answer_seconds)
        self._fresh_seconds = fresh_seconds
        self._spacing_seconds = spacing_seconds
        self._wait_seconds = options.wait_seconds
        self._fetching: SharedWork[None, None] = SharedWork()
        self._began = float("-inf")
        self._latest: tuple[float, PodList] = (float("-inf"), PodList(()))

    async def find(self, container: Container) -> frozenset[str] | None:
        """Return the facts about the container; None if its pod has ended.

        Raises:
            AttestorError: the kubelet cannot be asked, contradicts the cgroup, or does not list the
                container in time.
        """
        loop = asyncio.get_running_loop()
        now = loop.time()
        until, moment = now + self._wait_seconds, now - self._fresh_seconds
        while True:
            pods = await self.since(moment)
            facts = pods.find(container)
            if facts is not None:
                return facts
            if pods.has_ended(container):
                return None
            moment = loop.time()
            if moment >= until:
                raise AttestorError(f"the kubelet does not list container {container.id[:12]} yet")

    async def since(self, moment: float) -> PodList:
        """Return a list that was requested at this time of the event loop, or later.

        Raises:
            AttestorError: the kubelet gives none.
        """
        while self._latest[0] < moment:
            await self._fetching.get(None, self._fetch)
        return self._latest[1]

    async def close(self) -> None:
        """Cancel the request in progress and end the client."""
        await asyncio.to_thread(self._kubelet.close)
        await self._fetching.close()

    async def _fetch(self) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(self._began + self._spacing_seconds - loop.time())
        began = self._began = loop.time()
        self._latest = (began, await self._kubelet.pods())


class Kubelet:
    """A client of the kubelet. It owns a thread, its event loop and the connection."""

    def __init__(self, options: KubeletOptions, answer_seconds: float = ANSWER_SECONDS) -> None:
        self._options = options
        self._answer_seconds = answer_seconds
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._session: aiohttp.ClientSession | None = None
        self._files: tuple[object, ...] = ()

    async def pods(self) -> PodList:
        """Request the list of the node's pods.

        Raises:
            AttestorError: the kubelet cannot be asked, or its answer is no pod list.
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
        """End the thread and wait for it, so not on the thread of an event loop."""
        if self._loop is None or self._thread is None:
            return
        asyncio.run_coroutine_threadsafe(self._give_up(), self._loop).result()
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
        """Return a session with the present files, and the headers of one request."""
        options = self._options
        files = tuple(map(_version, (options.ca_file, options.certificate_file, options.key_file)))
        if self._session is None or files != self._files:
            await self._hang_up()
            self._files = files
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=_tls(options), limit=1),
                headers={"Accept": "application/json", "Accept-Encoding": "identity"},
                auto_decompress=False,
                timeout=aiohttp.ClientTimeout(total=self._answer_seconds),
            )
        token = _token(options.bearer_file)
        return self._session, {"Authorization": f"Bearer {token}"} if token else {}

    async def _give_up(self) -> None:
        # First: a cancelled request would send a TLS close_notify and wait for the answer.
        await self._hang_up()
        under_way = asyncio.all_tasks() - {asyncio.current_task()}
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)

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
    with _loading("its CA", options.ca_file):
        context = ssl.create_default_context(cafile=options.ca_file)
    if options.certificate_file is not None and options.key_file is not None:
        names = f"{options.certificate_file} and {options.key_file}"
        with _loading("the client certificate", names):
            context.load_cert_chain(options.certificate_file, options.key_file)
    return context


@contextmanager
def _loading(what: str, names: str) -> Iterator[None]:
    """Add the file to an error of OpenSSL, which does not name it."""
    try:
        yield
    except (OSError, ssl.SSLError) as error:
        reason = error.strerror or error
        raise AttestorError(f"{what} cannot be loaded from {names}: {reason}") from error


def _token(path: str | None) -> str:
    if path is None:
        return ""
    try:
        token = Path(path).read_bytes().strip()
    except OSError as error:
        raise AttestorError(f"its token cannot be read from {path}: {error.strerror}") from error
    # RFC 6750, section 2.1. A certificate or a kubeconfig does not match.
    if not re.fullmatch(rb"[A-Za-z0-9._~+/-]+=*", token):
        raise AttestorError(f"the content of {path} is not a bearer token: check token_file")
    return token.decode()


def _version(path: str | None) -> object:
    """Return a value that changes with the file. Kubernetes changes a mounted secret by a link."""
    if path is None:
        return None
    try:
        status = os.stat(path)  # noqa: PTH116 - a Path for this alone costs more
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
