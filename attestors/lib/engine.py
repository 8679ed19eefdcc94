"""The part of the Docker Engine API that is needed, which Podman serves as well.

Paths carry no version, so that each engine answers in its own: what is read here is in all of them
since 1.24 (https://docs.docker.com/reference/api/engine/).
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

# Labels and environment of a container are at most some hundred kilobytes.
ANSWER_BYTES = 4 << 20
ANSWER_SECONDS = 3.0
CONNECTIONS = 8
# An event holds the container's labels.
EVENT_BYTES = 1 << 20
# An old event costs a question; engines tell times in whole seconds.
EVENTS_AGO_SECONDS = 2
# After these what an engine says of a container may be another thing.
_EVENTS = json.dumps({"type": ["container"], "event": ["rename", "update", "die", "destroy"]})
_NOT_FOUND = 404


class _State(Part):
    # The kernel has none above (PID_MAX_LIMIT).
    pid: int = Field(alias="Pid", ge=0, le=1 << 22)


class _Config(Part):
    image: str = Field(default="", alias="Image")
    labels: dict[str, str] | None = Field(default=None, alias="Labels")
    env: list[str] | None = Field(default=None, alias="Env")


class ContainerAnswer(Part):
    """What an engine says of a container (`GET /containers/ID/json`)."""

    id: str = Field(alias="Id")
    name: str = Field(default="", alias="Name")
    image: str = Field(default="", alias="Image")
    """The image's own ID, `sha256:…`; `config.image` is what it was called at creation."""
    state: _State = Field(alias="State")
    config: _Config = Field(alias="Config")

    @property
    def facts(self) -> frozenset[str]:
        """The selectors' values that follow from it."""
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
    """Asks one engine over its Unix socket. It owns the connections; `close` ends them."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._opened: aiohttp.ClientSession | None = None

    async def inspect(self, container_id: str) -> ContainerAnswer | None:
        """What the engine says of a container; None if it has none of that ID.

        Raises:
            UnreachableError: the engine does not answer.
            AttestorError: its answer makes no sense.
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
                raise AttestorError(f"asked for {container_id}, it told of {answer.id[:80]!r}")
            return answer

    async def changes(self, opened: Callable[[], None]) -> AsyncIterator[str]:
        """The IDs of containers that become another thing, as it happens, without end.

        `opened` is called once the engine has agreed to tell: from then on nothing is missed.

        Raises:
            AttestorError: the engine does not tell any more.
        """
        with _naming(self._path):
            endless = aiohttp.ClientTimeout(total=None, sock_connect=ANSWER_SECONDS)
            # An engine agrees before it listens: what happens in between it has to look up.
            now = int(time.time())  # noqa: TID251 - it is the engine's clock as well
            asked = {"filters": _EVENTS, "since": str(now - EVENTS_AGO_SECONDS)}
            async with get(self._session(), "/events", params=asked, timeout=endless) as response:
                opened()
                async for line in read_lines(response, EVENT_BYTES):
                    yield _subject(line)
            raise UnreachableError("it ended the stream of events")

    async def close(self) -> None:
        """End all connections; again is harmless."""
        if self._opened is not None:
            await self._opened.close()
            self._opened = None

    def _session(self) -> aiohttp.ClientSession:
        # Made here because it belongs to the running event loop.
        if self._opened is None:
            self._opened = aiohttp.ClientSession(
                "http://engine",
                connector=aiohttp.UnixConnector(self._path, limit=CONNECTIONS),
                headers={"Accept-Encoding": "identity"},
                auto_decompress=False,
                timeout=aiohttp.ClientTimeout(total=ANSWER_SECONDS),
            )
        return self._opened


@contextmanager
def _naming(path: str) -> Iterator[None]:
    """Say in every error which engine it is of."""
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
    return "; the agent has to be root, or in the socket's group" if is_forbidden else ""


def _subject(line: bytes) -> str:
    """The container that an event is about."""
    try:
        return _Event.model_validate_json(line).actor.id
    except ValidationError as error:
        raise AttestorError(f"an event makes no sense: {first_fault(error)}") from error
