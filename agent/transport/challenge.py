"""Is the caller itself at the other end, now? One PING down the connection tells.

Every HTTP/2 stack answers a PING by itself, at once, with the same payload (RFC 9113 section 6.7),
so that the workload takes no part in it. The payload is random: the answer was sent after the
question. `agent.kernel.sender` checks, for all bytes, that the caller's own process sent them.

At stop the same PING tells when a client has understood that it is to call elsewhere: what it
sent before it knew has come by then.
"""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from agent.errors import PeerGoneError, UnansweredError
from agent.transport.http2 import GO_AWAY, PAYLOAD_BYTES, Calls, ClientFrames, Insertion, ping

if TYPE_CHECKING:
    from collections.abc import Callable, Sized

# A client answers within a millisecond. One that is stopped, or swapped out, comes again later.
ANSWER_SECONDS = 10.0
# A client that does not read has sent nothing either.
HEARD_SECONDS = 1.0
# One who does not read leaves all of them lying here. A client has a hundred calls at a time.
MOST_UNANSWERED = 1000


class Challenge:
    """The challenges of one connection, whose bytes pass through here in both directions.

    `send` takes bytes for the client, to be sent behind whatever is on its way. In one call the
    client may send `call_bytes`.
    """

    def __init__(self, send: Callable[[bytes], None], call_bytes: float = math.inf) -> None:
        self._send = send
        self._calls = Calls(call_bytes)
        self._insertion = Insertion(self._calls)
        self.frames = ClientFrames(self._calls)
        """What has come from the client."""
        self.open: Sized = self._calls.open
        """The calls that are under way, if only by half a request."""
        self._waiting: dict[bytes, asyncio.Future[None]] = {}
        self._unanswered = 0  # since the last answer
        self._progress: asyncio.Event | None = None  # only while somebody waits, for memory's sake
        self._closed = False
        self._began = time.monotonic()

    def to_client(self, chunk: bytes) -> bytes:
        """What to pass on of the server's bytes."""
        passing = self._insertion.feed(chunk)
        if self._progress is not None:
            self._tell_progress()
        return passing

    def from_client(self, chunk: bytes) -> bytes:
        """What to pass on of the client's bytes, which the caller itself must have sent.

        Raises:
            HeaderBlockError: there is no end to the headers.
            RequestSizeError: there is too much in one call.
        """
        passing = self.frames.feed(chunk)
        if self._waiting:
            self._take_answers()
        if self._progress is not None:
            self._tell_progress()
        return passing

    def _take_answers(self) -> None:
        for payload in self.frames.answered():
            self._unanswered = 0
            if not self._waiting[payload].done():
                self._waiting[payload].set_result(None)

    async def prove(self) -> None:
        """Return when the client has answered a question that was sent now.

        Raises:
            UnansweredError: it does not answer.
            PeerGoneError: the connection ended.
        """
        if self._unanswered >= MOST_UNANSWERED:
            raise UnansweredError("the process answers no PING; try again on another connection")
        self._unanswered += 1
        payload = secrets.token_bytes(PAYLOAD_BYTES)
        answer = asyncio.get_running_loop().create_future()
        self._waiting[payload] = answer
        self.frames.expect(payload)
        try:
            self._insert(ping(payload))
            async with asyncio.timeout(ANSWER_SECONDS):
                await answer
        except TimeoutError as error:
            raise UnansweredError(
                f"the process did not answer a PING within {ANSWER_SECONDS:.0f} s; try again"
            ) from error
        finally:
            del self._waiting[payload]
            self.frames.forget(payload)

    async def turn_away(self) -> None:
        """Have the client call elsewhere; return when no call here waits for its first response.

        One that has just connected makes its call first. gRPC's clients that are told while they
        still shake hands may sit there without a connection until their deadline.
        """
        shaking_hands = self._began + HEARD_SECONDS - time.monotonic()
        with suppress(TimeoutError):
            async with asyncio.timeout(shaking_hands):
                await self._until(lambda: self.frames.requests > 0)
        if self._closed:
            return
        self._insert(GO_AWAY)
        with suppress(TimeoutError, PeerGoneError, UnansweredError):
            async with asyncio.timeout(HEARD_SECONDS):
                await self.prove()
        await self._until(lambda: not self._calls.unanswered)

    async def quiet(self) -> None:
        """Return when no call is under way."""
        await self._until(lambda: not self._calls.open)

    async def _until(self, holds: Callable[[], bool]) -> None:
        while not self._closed and not holds():
            if self._progress is None:
                self._progress = asyncio.Event()
            await self._progress.wait()

    def _tell_progress(self) -> None:
        if self._progress is not None:
            self._progress.set()
            self._progress = None

    def _insert(self, frame: bytes) -> None:
        if now := self._insertion.insert(frame):
            self._send(now)

    def close(self) -> None:
        """The connection ended: nobody will answer any more."""
        self._closed = True
        self._tell_progress()
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(PeerGoneError("the connection ended"))
