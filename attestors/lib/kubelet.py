"""The kubelet, asked for its pods from a thread with an event loop of its own.

So neither TLS nor the parsing of a long list takes time of the agent's event loop; and because a
thread that computes keeps others from the interpreter, this one pauses after every slice of work.
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
# The longest wait, and the fetch that it ends with.
LONGEST_SECONDS = WAIT_SECONDS_MAX + ANSWER_SECONDS
# What the kubelet said is believed this long.
FRESH_SECONDS = 5.0
# 110 pods a node are usual; 10,000 of the largest that are common.
LIST_BYTES = 256 << 20
# From the beginning of one fetch to that of the next.
SPACING_SECONDS = 0.5
# A thread that wants the interpreter waits for a slice at most, and gets it in the pause.
SLICE_SECONDS = 0.001
PAUSE_SECONDS = 0.0005
_REFUSED = frozenset({401, 403})
_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
_ADVICE = "; these credentials need `get` on nodes/proxy, or on nodes/pods from Kubernetes 1.33 on"


def _only_a_host(host: str) -> str:
    if "/" in host or host.count(":") == 1:
        raise ValueError(f"{host!r} is not a host name or address: leave out what is around it")
    return host


_Port = Annotated[int, Field(ge=1, le=65535)]


class KubeletOptions(Options):
    """How to reach the kubelet."""

    node_name: str | None = Field(
        default=None, min_length=1, description="The node's name, for which its certificate is."
    )
    node_name_env: str | None = Field(
        default=None, min_length=1, description="The environment variable that holds node_name."
    )
    host: Annotated[str, AfterValidator(_only_a_host)] = Field(
        default="127.0.0.1", min_length=1, description="Where to connect to."
    )
    port: _Port = Field(default=10250, description="The kubelet's secure port.")
    read_only_port: _Port | None = Field(
        default=None, description="Ask this port, without TLS: only where nobody else can bind it."
    )
    ca_file: AbsolutePath = Field(
        default=f"{_ACCOUNT}/ca.crt", description="Who signed the kubelet's certificate."
    )
    token_file: AbsolutePath | None = Field(
        default=None,
        description=f"A bearer token; without a client certificate {_ACCOUNT}/token.",
    )
    certificate_file: AbsolutePath | None = Field(
        default=None, description="A client certificate, instead of a token."
    )
    key_file: AbsolutePath | None = Field(default=None, description="Its key.")
    wait_seconds: float = Field(
        default=5.0,
        ge=0,
        le=WAIT_SECONDS_MAX,
        description="How long a caller waits for its container to appear.",
    )

    @property
    def url(self) -> str:
        """What to ask."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        if self.read_only_port is not None:
            return f"http://{host}:{self.read_only_port}/pods"
        return f"https://{host}:{self.port}/pods"

    @property
    def server_name(self) -> str | None:
        """The name that the kubelet's certificate must have; None without TLS."""
        if self.read_only_port is not None:
            return None
        return self.node_name or os.environ.get(self.node_name_env or "")

    @property
    def bearer_file(self) -> str | None:
        """Where the token is; None if none is sent."""
        if self.read_only_port is not None:
            return None
        return self.token_file or (None if self.certificate_file else f"{_ACCOUNT}/token")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.certificate_file is None) != (self.key_file is None):
            raise ValueError("certificate_file and key_file belong together: give both or none")
        if self.read_only_port is not None and (self.token_file or self.certificate_file):
            raise ValueError(
                "read_only_port is asked without credentials: leave token_file and "
                "certificate_file out, or ask the secure port"
            )
        if self.read_only_port is None and (self.node_name is None) == (self.node_name_env is None):
            raise ValueError(
                "give node_name or node_name_env: the certificate must be for somebody"
            )
        return self


class PodLists:
    """Pod lists, fetched one at a time for all who wait. It owns the kubelet's client.

    Raises:
        AttestorError: the variable that should hold the node's name is not set.
    """

    def __init__(self, options: KubeletOptions) -> None:
        if options.read_only_port is None and not options.server_name:
            raise AttestorError(f"${options.node_name_env} is not set: the node's name")
        self._kubelet = Kubelet(options)
        self._wait_seconds = options.wait_seconds
        self._fetching: SharedWork[None, None] = SharedWork()
        self._began = float("-inf")
        self._latest: tuple[float, PodList] = (float("-inf"), PodList(()))

    async def find(self, container: Container) -> frozenset[str] | None:
        """What the kubelet says of the container; None if it will never know it.

        Raises:
            AttestorError: it cannot be asked, contradicts the cgroup, or does not list it in time.
        """
        loop = asyncio.get_running_loop()
        now = loop.time()
        until, moment = now + self._wait_seconds, now - FRESH_SECONDS
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
        """A list whose fetch began at this time of the event loop, or later.

        Raises:
            AttestorError: the kubelet does not give one.
        """
        while self._latest[0] < moment:
            await self._fetching.get(None, self._fetch)
        return self._latest[1]

    async def close(self) -> None:
        """End what is under way."""
        await asyncio.to_thread(self._kubelet.close)
        await self._fetching.close()

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
        token = _token(options.bearer_file)
        return self._session, {"Authorization": f"Bearer {token}"} if token else {}

    async def _give_up(self) -> None:
        # First: a question that is cancelled would say goodbye over TLS and wait for the answer.
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
    """OpenSSL does not say which file it means."""
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
    # RFC 6750, section 2.1. Else it is another file, such as a certificate or a kubeconfig.
    if not re.fullmatch(rb"[A-Za-z0-9._~+/-]+=*", token):
        raise AttestorError(f"what {path} holds is no bearer token: is it the right file?")
    return token.decode()


def _version(path: str | None) -> object:
    """What changes when a file does; mounted secrets are changed by a link."""
    if path is None:
        return None
    try:
        status = os.stat(path)  # noqa: PTH116 - a Path would be made for this alone
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
