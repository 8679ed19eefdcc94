"""Prove that the caller's own process still holds the connection: it must answer an HTTP/2 PING.

Every HTTP/2 implementation answers a PING by itself, at once, with the same payload (RFC 9113
section 6.7); the workload's code takes no part. `agent.kernel.sender` checks for all bytes that the
caller's process queued them. That is not enough: a process may queue bytes first and write their
content later, for example by sendfile(2) of a file that another process maps. An answer therefore
counts only if its whole frame, header included, was queued after the question: its first byte must
lie at or behind the end of what the client had queued by then, the bytes received and those that
wait in the socket (FIONREAD counts them exactly, spliced ones too).

Each question has a payload and a boundary of its own.
"""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.errors import PeerGoneError, UnansweredError

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.transport.half import PingAnswered

PAYLOAD_BYTES = 8
# A client answers within a millisecond. A client that is stopped or swapped out may try again
# later.
ANSWER_SECONDS = 10.0
# Unanswered PINGs stay in memory while a client does not read. A client has a hundred calls at a
# time.
MOST_UNANSWERED = 1000


@dataclass(slots=True)
class _Question:
    boundary: int
    answer: asyncio.Future[None]


class Challenge:
    """The questions of one connection.

    Args:
        send: sends a PING with this payload.
        queued: returns the number of bytes that the client has queued so far.
        answer_seconds: the time for an answer.
        most_unanswered: questions in a row without an answer; then no further is sent.
    """

    __slots__ = (
        "_answer_seconds",
        "_most_unanswered",
        "_queued",
        "_send",
        "_unanswered",
        "_waiting",
    )

    def __init__(
        self,
        send: Callable[[bytes], None],
        queued: Callable[[], int],
        answer_seconds: float = ANSWER_SECONDS,
        most_unanswered: int = MOST_UNANSWERED,
    ) -> None:
        self._send = send
        self._queued = queued
        self._answer_seconds = answer_seconds
        self._most_unanswered = most_unanswered
        self._waiting: dict[bytes, _Question] = {}
        self._unanswered = 0  # since the last answer

    async def prove(self) -> None:
        """Ask a new question, and return when the client has answered it.

        Raises:
            UnansweredError: the client does not answer.
            PeerGoneError: the connection ended.
        """
        if self._unanswered >= self._most_unanswered:
            raise UnansweredError("the process answers no PING; try again on another connection")
        self._unanswered += 1
        loop = asyncio.get_running_loop()
        payload = secrets.token_bytes(PAYLOAD_BYTES)
        question = _Question(self._queued(), loop.create_future())
        self._waiting[payload] = question
        # Not asyncio.timeout, which needs a task: the first step of a call has none.
        timer = loop.call_later(self._answer_seconds, self._give_up, question.answer)
        try:
            self._send(payload)
            await question.answer
        finally:
            timer.cancel()
            del self._waiting[payload]

    def take(self, event: PingAnswered) -> None:
        """Take an answer. One to no question, or queued before its question, proves nothing."""
        question = self._waiting.get(event.payload)
        if question is None or event.offset < question.boundary:
            return
        self._unanswered = 0
        if not question.answer.done():
            question.answer.set_result(None)

    def close(self) -> None:
        """Fail all waiting proofs, because the connection ended."""
        for question in self._waiting.values():
            if not question.answer.done():
                question.answer.set_exception(PeerGoneError("the connection ended"))

    def _give_up(self, answer: asyncio.Future[None]) -> None:
        if not answer.done():
            answer.set_exception(
                UnansweredError(
                    f"the process did not answer a PING within {self._answer_seconds:.0f} s;"
                    " try again"
                )
            )
