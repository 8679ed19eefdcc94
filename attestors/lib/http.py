"""HTTP requests whose answers are bounded in bytes: the server may be broken or hostile."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import aiohttp

from attestors.api import AttestorError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

# The part of an error answer that an error message quotes.
_EXCERPT_BYTES = 200


class UnreachableError(AttestorError):
    """The server did not answer, not in time, or not to the end."""


class HttpError(AttestorError):
    """The server answered with an error. `status` is the HTTP status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@asynccontextmanager
async def get(
    session: aiohttp.ClientSession, url: str, **request: Any
) -> AsyncIterator[aiohttp.ClientResponse]:
    """Send a GET request; the block reads the answer. `request` are arguments of aiohttp.

    Raises, also from within the block:
        HttpError: the status is not 200; the text quotes the beginning of the answer.
        UnreachableError: there is no complete answer.
    """
    try:
        async with session.get(url, allow_redirects=False, **request) as response:
            if response.status != 200:  # noqa: PLR2004 - the one good status
                excerpt = (await response.content.read(_EXCERPT_BYTES)).decode(errors="replace")
                raise HttpError(
                    f"HTTP status {response.status}: {excerpt.strip()!r}", response.status
                )
            yield response
    except TimeoutError as error:
        raise UnreachableError("no answer in time") from error
    except (aiohttp.ClientError, OSError) as error:
        raise UnreachableError(_reason(error)) from error


async def read(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """Read the whole body.

    Raises:
        AttestorError: it is longer than `limit` bytes.
    """
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > limit:
            raise AttestorError(f"the answer is longer than {limit} bytes")
    return bytes(body)


async def read_lines(response: aiohttp.ClientResponse, limit: int) -> AsyncIterator[bytes]:
    r"""Read the body line by line, as it arrives. Bytes after the last `\n` are not a line.

    Raises:
        AttestorError: a line is longer than `limit` bytes.
    """
    begun = bytearray()
    async for chunk in response.content.iter_any():
        *ends, rest = chunk.split(b"\n")
        for end in ends:
            yield bytes(begun + end)
            begun.clear()
        begun += rest
        if len(begun) > limit:
            raise AttestorError(f"a line is longer than {limit} bytes")


def _reason(error: Exception) -> str:
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    text = cause.strerror if isinstance(cause, OSError) else None
    return text or str(cause) or type(cause).__name__
