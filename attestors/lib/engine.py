"""A client of the Docker Engine API, which Podman serves too.

Request paths carry no version, so that each engine answers in its own. All versions since 1.24 have
the fields that are read here (https://docs.docker.com/reference/api/engine/).
"""

from __future__ import annotations

import json
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import aiohttp
from pydantic import Field, ValidationError

from attestors.api import AttestorError
from attestors.lib.http import HttpError, UnreachableError, get, read, read_lines
from attestors.lib.models import Part, first_fault

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

# Labels and environment of a container take at most some hundred kilobytes.
ANSWER_BYTES = 4 << 20
ANSWER_SECONDS = 3.0
CONNECTIONS = 8
# An event contains the container's labels.
EVENT_BYTES = 1 << 20
# Engines give times in whole seconds. An event from before costs one question.
EVENTS_AGO_SECONDS = 2
# The events after which the engine may describe a container differently.
_EVENTS = json.dumps({"type": ["container"], "event": ["rename", "update", "die", "destroy"]})
_NOT_FOUND = 404
_ID_CHARS = 80


class _State(Part):
    # The kernel's upper limit (PID_MAX_LIMIT).
    pid: int = Field(alias="Pid", ge=0, le=1 << 22)


class _Config(Part):
    image: str = Field(default="", alias="Image")
    labels: dict[str, str] | None = Field(default=None, alias="Labels")
    env: list[str] | None = Field(default=None, alias="Env")


class ContainerAnswer(Part):
    """The engine's description of a container (`GET /containers/ID/json`)."""

    id: str = Field(alias="Id")
    name: str = Field(default="", alias="Name")
    image: str = Field(default="", alias="Image")
    """The image's ID, `sha256:…`; `config.image` is its name when the container was created."""
    state: _State = Field(alias="State")
    config: _Config = Field(alias="Config")

    @property
    def facts(self) -> frozenset[str]:
        """The values of the selectors."""
        labels = self.config.labels or {}
        facts = {f"label:{name}:{value}" for name, value in labels.items()}
        facts |= {f"env:{variable}" for variable in self.config.env or ()}
        named = {
            "image_id": self.config.image,
            "image_config_digest": self.image,
            "container_name": self.name.removeprefix("/"),
            "compose_project": labels.get("com.docker.compose.project"),
            "compose_service": labels.get("com.docker.compose.service"),
        }
        return frozenset(facts | {f"{name}:{value}" for name, value in named.items() if value})


class _Actor(Part):
    id: str = Field(alias="ID")


class _Event(Part):
    actor: _Actor = Field(alias="Actor")


class EngineClient:
    """A client of one engine on its Unix socket. It owns the connections; `close` ends them."""

    def __init__(
        self,
        path: str,
        answer_seconds: float = ANSWER_SECONDS,
        now: Callable[[], float] = time.time,  # noqa: TID251 - the clock of the engine too
    ) -> None:
        self._path = path
        self._answer_seconds = answer_seconds
        self._now = now
        self._opened: aiohttp.ClientSession | None = None

    async def inspect(self, container_id: str) -> ContainerAnswer | None:
        """Ask for a container; None if the engine knows no such one.

        Raises:
            UnreachableError: the engine does not answer.
            AttestorError: its answer is not that of the API.
        """
        with _naming(self._path):
            try:
                async with get(self._session(), f"/containers/{container_id}/json") as response:
                    answer = ContainerAnswer.model_validate_json(await read(response, ANSWER_BYTES))
            except HttpError as error:
                if error.status == _NOT_FOUND:
                    return None
                raise AttestorError(str(error)) from error
            except ValidationError as error:
                reason = first_fault(error)
                raise AttestorError(f"its answer is not a container's: {reason}") from error
            if answer.id != container_id:
                answered = answer.id[:_ID_CHARS]
                raise AttestorError(f"asked for {container_id}, it answered for {answered!r}")
            return answer

    async def changes(self, opened: Callable[[], None]) -> AsyncIterator[str]:
        """Read the IDs of containers that change, without end.

        It calls `opened` when the stream is open: from then on it misses no change.

        Raises:
            AttestorError: the stream ended.
        """
        with _naming(self._path):
            endless = aiohttp.ClientTimeout(total=None, sock_connect=self._answer_seconds)
            # Docker sends the header of the answer before it subscribes to its events; with
            # `since` it looks up the events of that gap.
            since = int(self._now()) - EVENTS_AGO_SECONDS
            asked = {"filters": _EVENTS, "since": str(since)}
            async with get(self._session(), "/events", params=asked, timeout=endless) as response:
                opened()
                async for line in read_lines(response, EVENT_BYTES):
                    yield _subject(line)
            raise UnreachableError("it ended the event stream")

    async def close(self) -> None:
        """Close all connections. A second call has no effect."""
        if self._opened is not None:
            await self._opened.close()
            self._opened = None

    def _session(self) -> aiohttp.ClientSession:
        # A session belongs to the running event loop.
        if self._opened is None:
            self._opened = aiohttp.ClientSession(
                "http://engine",
                connector=aiohttp.UnixConnector(self._path, limit=CONNECTIONS),
                headers={"Accept-Encoding": "identity"},
                auto_decompress=False,
                timeout=aiohttp.ClientTimeout(total=self._answer_seconds),
            )
        return self._opened


@contextmanager
def _naming(path: str) -> Iterator[None]:
    """Add the engine's socket to every error."""
    try:
        yield
    except UnreachableError as error:
        reason = f"{error}{_advice(error.__cause__)}"
        raise UnreachableError(
            f"the container engine at {path} cannot be asked: {reason}"
        ) from error
    except AttestorError as error:
        raise AttestorError(f"the container engine at {path}: {error}") from error


def _advice(cause: BaseException | None) -> str:
    is_forbidden = isinstance(cause, aiohttp.ClientConnectorError) and isinstance(
        cause.os_error, PermissionError
    )
    return "; run the agent as root, or in the socket's group" if is_forbidden else ""


def _subject(line: bytes) -> str:
    """Return the ID of the container that changed."""
    try:
        return _Event.model_validate_json(line).actor.id
    except ValidationError as error:
        raise AttestorError(f"an event is not that of the API: {first_fault(error)}") from error
