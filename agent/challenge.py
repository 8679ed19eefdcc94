"""Is the caller itself at the other end, now? One PING down the connection tells.

Every HTTP/2 stack answers a PING by itself, at once, with the same payload (RFC 9113 section 6.7),
so that the workload takes no part in it. The payload is random: the answer was sent after the
question. That the caller's own process sent it is what `agent.sender` sees to, for all bytes.
"""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING

from agent.errors import PeerGoneError, UnansweredError
from agent.frames import PAYLOAD_BYTES, ClientFrames, PingInsertion

if TYPE_CHECKING:
    from collections.abc import Callable

# A client answers within a millisecond. One that is stopped, or swapped out, comes again later.
ANSWER_SECONDS = 10.0


class Challenge:
    """The challenges of one connection, whose bytes pass through here in both directions.

    `send` takes bytes for the client, to be sent behind whatever is on its way.
    """

    def __init__(self, send: Callable[[bytes], None]) -> None:
        self._send = send
        self._insertion = PingInsertion()
        self._frames = ClientFrames()
        self._waiting: dict[bytes, asyncio.Future[None]] = {}

    @property
    def requests(self) -> int:
        """How many requests the client has sent."""
        return self._frames.requests

    def to_client(self, chunk: bytes) -> bytes:
        """What to pass on of the server's bytes."""
        return self._insertion.feed(chunk)

    def from_client(self, chunk: bytes) -> bytes:
        """What to pass on of the client's bytes, which the caller itself must have sent.

        Raises:
            HeaderBlockError: there is no end to the headers.
        """
        passing = self._frames.feed(chunk)
        for payload in self._frames.answered():
            if not self._waiting[payload].done():
                self._waiting[payload].set_result(None)
        return passing

    async def prove(self) -> None:
        """Return when the client has answered a question that was sent now.

        Raises:
            UnansweredError: it does not answer.
            PeerGoneError: the connection ended.
        """
        payload = secrets.token_bytes(PAYLOAD_BYTES)
        answer = asyncio.get_running_loop().create_future()
        self._waiting[payload] = answer
        self._frames.expect(payload)
        try:
            if question := self._insertion.insert(payload):
                self._send(question)
            async with asyncio.timeout(ANSWER_SECONDS):
                await answer
        except TimeoutError as error:
            raise UnansweredError(
                f"the process did not answer a PING within {ANSWER_SECONDS:.0f} s; try again"
            ) from error
        finally:
            del self._waiting[payload]
            self._frames.forget(payload)

    def close(self) -> None:
        """The connection ended: nobody will answer any more."""
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(PeerGoneError("the connection ended"))
