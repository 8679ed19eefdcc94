"""Prove that the caller's own process still holds the connection: it must answer an HTTP/2 PING.

Every HTTP/2 implementation answers a PING by itself, at once, with the same payload (RFC 9113
section 6.7); the workload's code takes no part. The payload is random, so the answer was sent after
the PING. `agent.kernel.sender` checks for all bytes that the caller's process sent them.

At stop the same PING shows that a client has seen the GOAWAY: its earlier calls have arrived by
then.
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

# A client answers within a millisecond. A client that is stopped or swapped out may try again
# later.
ANSWER_SECONDS = 10.0
# At stop: the time for a handshake, and for the answer that follows a GOAWAY.
GO_AWAY_SECONDS = 1.0
# Unanswered PINGs stay in memory while a client does not read. A client has a hundred calls at a
# time.
MOST_UNANSWERED = 1000


class Challenge:
    """The PINGs of one connection. All bytes of both directions pass through here.

    `send` takes bytes for the client, to be sent behind those that are on their way. In one call
    the client may send `call_bytes`.
    """

    def __init__(
        self,
        send: Callable[[bytes], None],
        call_bytes: float = math.inf,
        answer_seconds: float = ANSWER_SECONDS,
        go_away_seconds: float = GO_AWAY_SECONDS,
        most_unanswered: int = MOST_UNANSWERED,
    ) -> None:
        self._send = send
        self._answer_seconds = answer_seconds
        self._go_away_seconds = go_away_seconds
        self._most_unanswered = most_unanswered
        self._calls = Calls(call_bytes)
        self._insertion = Insertion(self._calls)
        self.frames = ClientFrames(self._calls)
        """The frames of the client."""
        self.open: Sized = self._calls.open
        """The open calls, including those with an incomplete request."""
        self._waiting: dict[bytes, asyncio.Future[None]] = {}
        self._unanswered = 0  # since the last answer
        self._progress: asyncio.Event | None = None  # exists while a task waits, to save memory
        self._closed = False
        self._began = time.monotonic()

    def to_client(self, chunk: bytes) -> bytes:
        """Return the bytes to send to the client for this chunk of the server's."""
        passing = self._insertion.feed(chunk)
        if self._progress is not None:
            self._note_progress()
        return passing

    def from_client(self, chunk: bytes) -> bytes:
        """Return the bytes to send to the server for this chunk, which the caller must have sent.

        Raises:
            HeaderBlockError: a header block is too large.
            RequestSizeError: a call is too large.
        """
        passing = self.frames.feed(chunk)
        if self._waiting:
            self._take_answers()
        if self._progress is not None:
            self._note_progress()
        return passing

    def _take_answers(self) -> None:
        for payload in self.frames.answered():
            self._unanswered = 0
            if not self._waiting[payload].done():
                self._waiting[payload].set_result(None)

    async def prove(self) -> None:
        """Send a new PING, and return when the client has answered it.

        Raises:
            UnansweredError: the client does not answer.
            PeerGoneError: the connection ended.
        """
        if self._unanswered >= self._most_unanswered:
            raise UnansweredError("the process answers no PING; try again on another connection")
        self._unanswered += 1
        payload = secrets.token_bytes(PAYLOAD_BYTES)
        answer = asyncio.get_running_loop().create_future()
        self._waiting[payload] = answer
        self.frames.expect(payload)
        try:
            self._insert(ping(payload))
            async with asyncio.timeout(self._answer_seconds):
                await answer
        except TimeoutError as error:
            raise UnansweredError(
                f"the process did not answer a PING within {self._answer_seconds:.0f} s; try again"
            ) from error
        finally:
            del self._waiting[payload]
            self.frames.forget(payload)

    async def go_away(self) -> None:
        """Send GOAWAY, and return when no call waits for its first response.

        A client that has just connected first makes its call: a gRPC client that receives GOAWAY in
        its handshake may stay without a connection until its deadline.
        """
        handshake = self._began + self._go_away_seconds - time.monotonic()
        with suppress(TimeoutError):
            async with asyncio.timeout(handshake):
                await self._until(lambda: self.frames.requests > 0)
        if self._closed:
            return
        self._insert(GO_AWAY)
        with suppress(TimeoutError, PeerGoneError, UnansweredError):
            async with asyncio.timeout(self._go_away_seconds):
                await self.prove()
        await self._until(lambda: not self._calls.unanswered)

    async def wait_for_calls(self) -> None:
        """Return when no call is open."""
        await self._until(lambda: not self._calls.open)

    async def _until(self, holds: Callable[[], bool]) -> None:
        while not self._closed and not holds():
            if self._progress is None:
                self._progress = asyncio.Event()
            await self._progress.wait()

    def _note_progress(self) -> None:
        if self._progress is not None:
            self._progress.set()
            self._progress = None

    def _insert(self, frame: bytes) -> None:
        if now := self._insertion.insert(frame):
            self._send(now)

    def close(self) -> None:
        """Fail all waiting proofs, because the connection ended."""
        self._closed = True
        self._note_progress()
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(PeerGoneError("the connection ended"))
