"""PINGs of the challenge, and the GOAWAY at stop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from agent.errors import PeerGoneError, UnansweredError
from agent.transport.challenge import GO_AWAY_SECONDS, Challenge
from agent.transport.http2 import GO_AWAY, PAYLOAD_BYTES, ping
from tests.support.agent import SAFETY_SECONDS
from tests.support.fakes import settle

SETTINGS = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])


def ack(question: bytes) -> bytes:
    return question[:4] + b"\x01" + question[5:]


def begun(**options: Any) -> tuple[Challenge, list[bytes]]:
    """A challenge on a connection whose prefaces have passed, and the bytes that it sends."""
    sent: list[bytes] = []
    challenge = Challenge(sent.append, **options)
    challenge.from_client(bytes(24) + SETTINGS)
    challenge.to_client(SETTINGS)
    return challenge, sent


async def test_the_answer_proves_the_sender() -> None:
    challenge, sent = begun()
    async with asyncio.TaskGroup() as tasks:
        proof = tasks.create_task(challenge.prove())
        await asyncio.sleep(0)
        [question] = sent
        assert challenge.from_client(ack(question)) == b"", "the server sent no PING"
        await proof


async def test_another_answer_proves_nothing() -> None:
    challenge, sent = begun()
    async with asyncio.TaskGroup() as tasks:
        proof = tasks.create_task(challenge.prove())
        await asyncio.sleep(0)
        for wrong in (ack(ping(bytes(8))), sent[0]):
            assert challenge.from_client(wrong) == wrong
        await asyncio.sleep(0)
        assert not proof.done()
        challenge.from_client(ack(sent[0]))


async def test_every_ping_has_a_new_payload() -> None:
    challenge, sent = begun()
    async with asyncio.TaskGroup() as tasks:
        proofs = [tasks.create_task(challenge.prove()) for _ in range(3)]
        await asyncio.sleep(0)
        assert len(set(sent)) == 3
        challenge.from_client(ack(sent[1]))
        await asyncio.sleep(0)
        assert [proof.done() for proof in proofs] == [False, True, False]
        challenge.from_client(ack(sent[0]) + ack(sent[2]))


async def test_a_client_that_does_not_answer_proves_nothing() -> None:
    challenge, sent = begun(answer_seconds=0.01)
    with pytest.raises(UnansweredError, match="did not answer"):
        await challenge.prove()
    late = ack(sent[0])
    assert challenge.from_client(late) == late, "no longer expected: the server gets it"


async def ask(challenge: Challenge, sent: list[bytes], *, answers: bool) -> None:
    """A proof that succeeds, or one whose call is cancelled."""
    async with asyncio.TaskGroup() as tasks:
        proof = tasks.create_task(challenge.prove())
        await asyncio.sleep(0)
        if answers:
            challenge.from_client(ack(sent[-1]))
        else:
            proof.cancel()


async def test_a_client_that_never_answers_gets_a_bounded_number_of_pings() -> None:
    """It need not read either: each PING would stay in memory until it does."""
    challenge, sent = begun(most_unanswered=5, go_away_seconds=0.01)
    for _ in range(5):
        await ask(challenge, sent, answers=False)
    for _ in range(3):
        with pytest.raises(UnansweredError):
            await asyncio.wait_for(challenge.prove(), SAFETY_SECONDS)
    assert len(sent) == 5
    await asyncio.wait_for(challenge.go_away(), SAFETY_SECONDS)
    assert sent[5:] == [GO_AWAY]


async def test_a_client_that_answers_sometimes_gets_pings_without_bound() -> None:
    challenge, sent = begun(most_unanswered=5)
    for number in range(1, 20):
        await ask(challenge, sent, answers=number % 4 == 0)
    assert len(sent) == 19


async def test_the_end_of_the_connection_fails_a_waiting_proof() -> None:
    challenge, sent = begun()

    async def end() -> None:
        assert sent
        challenge.close()

    outcome, _ = await asyncio.gather(challenge.prove(), end(), return_exceptions=True)
    assert isinstance(outcome, PeerGoneError)


def call(kind: int, stream: int, flags: int = 4) -> bytes:
    return bytes([0, 0, 0, kind, flags, 0, 0, 0, stream])


DATA, HEADERS, RST_STREAM = 0, 1, 3
END_STREAM = 5


@asynccontextmanager
async def under_way(waiting: Coroutine[None, None, None]) -> AsyncIterator[asyncio.Task[None]]:
    """A wait that has begun, and ends with the block."""
    async with asyncio.timeout(SAFETY_SECONDS), asyncio.TaskGroup() as tasks:
        task = tasks.create_task(waiting)
        await settle()
        yield task


def answer_of(stream: int) -> bytes:
    """The first response of the server."""
    return call(HEADERS, stream) + call(DATA, stream, 0)


async def test_calls_that_a_client_made_before_it_saw_the_goaway_get_their_responses() -> None:
    challenge, sent = begun()
    challenge.from_client(call(HEADERS, 1))
    async with under_way(challenge.go_away()) as leaving:
        goaway, question = sent
        assert goaway == GO_AWAY
        challenge.from_client(call(HEADERS, 3) + ack(question))
        challenge.to_client(answer_of(1))
        await settle()
        assert not leaving.done(), "the second call was on its way"
        challenge.to_client(answer_of(3))


@pytest.mark.parametrize(
    "end",
    [
        lambda challenge: challenge.to_client(call(HEADERS, 1, END_STREAM)),
        lambda challenge: challenge.to_client(call(RST_STREAM, 1)),
        lambda challenge: challenge.from_client(call(RST_STREAM, 1)),
        lambda challenge: challenge.close(),
    ],
    ids=["refused", "reset", "cancelled", "hung up"],
)
async def test_go_away_does_not_wait_for_a_call_that_has_ended(
    end: Callable[[Challenge], object],
) -> None:
    challenge, sent = begun()
    challenge.from_client(call(HEADERS, 1))
    async with under_way(challenge.go_away()) as leaving:
        challenge.from_client(ack(sent[1]))
        await settle()
        assert not leaving.done()
        end(challenge)


async def test_a_new_connection_gets_its_goaway_after_its_first_call() -> None:
    """A gRPC client that receives GOAWAY in its handshake never makes its call."""
    challenge, sent = begun()
    async with under_way(challenge.go_away()):
        assert not sent
        challenge.from_client(call(HEADERS, 1))
        await settle()
        assert sent[0] == GO_AWAY
        challenge.from_client(ack(sent[1]))
        challenge.to_client(answer_of(1))


async def test_a_client_that_hangs_up_without_a_call_gets_no_goaway() -> None:
    challenge, sent = begun()
    async with under_way(challenge.go_away()):
        challenge.close()
    assert not sent


def is_ping(frame: bytes) -> bool:
    return frame == ping(frame[-PAYLOAD_BYTES:])


async def test_a_client_that_never_calls_gets_its_goaway_after_a_while() -> None:
    challenge, sent = begun(go_away_seconds=0.01)
    async with under_way(challenge.go_away()):
        pass
    goaway, question = sent
    assert goaway == GO_AWAY
    assert is_ping(question)


async def test_a_client_that_has_been_silent_for_long_gets_its_goaway_at_once() -> None:
    """Otherwise every silent connection would delay the stop."""
    challenge, sent = begun()
    challenge._began -= GO_AWAY_SECONDS
    async with under_way(challenge.go_away()):
        assert sent[0] == GO_AWAY
        challenge.from_client(ack(sent[1]))


async def test_go_away_waits_briefly_for_the_answer_of_a_client_that_does_not_read() -> None:
    challenge, sent = begun(go_away_seconds=0.01)
    challenge.from_client(call(HEADERS, 1))
    async with under_way(challenge.go_away()):
        goaway, question = sent
        assert goaway == GO_AWAY
        assert is_ping(question)
        challenge.to_client(answer_of(1))


async def test_wait_for_calls_returns_when_no_call_is_open() -> None:
    challenge, _ = begun()
    challenge.from_client(call(HEADERS, 1))
    challenge.to_client(answer_of(1))
    async with under_way(challenge.wait_for_calls()) as waiting:
        assert not waiting.done(), "its stream is open"
        challenge.from_client(call(HEADERS, 1, END_STREAM))  # trailers open nothing
        challenge.to_client(call(HEADERS, 1, END_STREAM))
