"""One PING down the connection, and who waits for its answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager

import pytest

from agent.errors import PeerGoneError, UnansweredError
from agent.transport import challenge as challenge_module
from agent.transport.challenge import Challenge
from agent.transport.http2 import GO_AWAY, PAYLOAD_BYTES, ping
from tests.support.fakes import settle

SETTINGS = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])


def ack(question: bytes) -> bytes:
    return question[:4] + b"\x01" + question[5:]


def begun() -> tuple[Challenge, list[bytes]]:
    """A challenge on a connection whose prefaces have passed, and what it sends."""
    sent: list[bytes] = []
    challenge = Challenge(sent.append)
    challenge.from_client(bytes(24) + SETTINGS)
    challenge.to_client(SETTINGS)
    return challenge, sent


async def test_the_answer_ends_the_wait() -> None:
    challenge, sent = begun()
    async with asyncio.TaskGroup() as tasks:
        proof = tasks.create_task(challenge.prove())
        await asyncio.sleep(0)
        [question] = sent
        assert challenge.from_client(ack(question)) == b"", "the server never asked"
        await proof


async def test_no_other_answer_does() -> None:
    challenge, sent = begun()
    async with asyncio.TaskGroup() as tasks:
        proof = tasks.create_task(challenge.prove())
        await asyncio.sleep(0)
        for wrong in (ack(ping(bytes(8))), sent[0]):
            assert challenge.from_client(wrong) == wrong
        await asyncio.sleep(0)
        assert not proof.done()
        challenge.from_client(ack(sent[0]))


async def test_every_question_is_new() -> None:
    challenge, sent = begun()
    async with asyncio.TaskGroup() as tasks:
        proofs = [tasks.create_task(challenge.prove()) for _ in range(3)]
        await asyncio.sleep(0)
        assert len(set(sent)) == 3
        challenge.from_client(ack(sent[1]))
        await asyncio.sleep(0)
        assert [proof.done() for proof in proofs] == [False, True, False]
        challenge.from_client(ack(sent[0]) + ack(sent[2]))


async def test_silence_is_no_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(challenge_module, "ANSWER_SECONDS", 0.01)
    challenge, sent = begun()
    with pytest.raises(UnansweredError, match="did not answer"):
        await challenge.prove()
    late = ack(sent[0])
    assert challenge.from_client(late) == late, "forgotten: it is for the server to make sense of"


async def ask(challenge: Challenge, sent: list[bytes], *, answers: bool) -> None:
    """A proof that is given, or one whose call is given up."""
    async with asyncio.TaskGroup() as tasks:
        proof = tasks.create_task(challenge.prove())
        await asyncio.sleep(0)
        if answers:
            challenge.from_client(ack(sent[-1]))
        else:
            proof.cancel()


async def test_one_who_answers_nothing_is_not_asked_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It need not even read: each question would lie there until it does."""
    monkeypatch.setattr(challenge_module, "MOST_UNANSWERED", 5)
    monkeypatch.setattr(challenge_module, "HEARD_SECONDS", 0.01)
    challenge, sent = begun()
    for _ in range(5):
        await ask(challenge, sent, answers=False)
    for _ in range(3):
        with pytest.raises(UnansweredError):
            await asyncio.wait_for(challenge.prove(), 1)
    assert len(sent) == 5
    await asyncio.wait_for(challenge.turn_away(), 1)
    assert sent[5:] == [GO_AWAY]


async def test_one_who_answers_now_and_then_is_asked_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(challenge_module, "MOST_UNANSWERED", 5)
    challenge, sent = begun()
    for number in range(1, 20):
        await ask(challenge, sent, answers=number % 4 == 0)
    assert len(sent) == 19


async def test_the_end_of_the_connection_ends_the_wait() -> None:
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
    """It has begun, and comes to its end."""
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        task = tasks.create_task(waiting)
        await settle()
        yield task


def answer_of(stream: int) -> bytes:
    """The first response of the server's."""
    return call(HEADERS, stream) + call(DATA, stream, 0)


async def test_who_is_turned_away_is_told_and_gets_what_it_asked_for_before_it_knew() -> None:
    challenge, sent = begun()
    challenge.from_client(call(HEADERS, 1))
    async with under_way(challenge.turn_away()) as away:
        told, question = sent
        assert told == GO_AWAY
        challenge.from_client(call(HEADERS, 3) + ack(question))
        challenge.to_client(answer_of(1))
        await settle()
        assert not away.done(), "the second call was on its way"
        challenge.to_client(answer_of(3))


@pytest.mark.parametrize(
    "end",
    [
        lambda challenge: challenge.to_client(call(HEADERS, 1, END_STREAM)),
        lambda challenge: challenge.to_client(call(RST_STREAM, 1)),
        lambda challenge: challenge.from_client(call(RST_STREAM, 1)),
        lambda challenge: challenge.close(),
    ],
    ids=["refused", "reset", "given up", "hung up"],
)
async def test_a_call_that_ends_is_waited_for_no_longer(end: Callable[[Challenge], object]) -> None:
    challenge, sent = begun()
    challenge.from_client(call(HEADERS, 1))
    async with under_way(challenge.turn_away()) as away:
        challenge.from_client(ack(sent[1]))
        await settle()
        assert not away.done()
        end(challenge)


async def test_one_who_has_just_connected_is_told_once_it_has_called() -> None:
    """gRPC's clients that are told in the middle of connecting never get to their call."""
    challenge, sent = begun()
    async with under_way(challenge.turn_away()):
        assert not sent
        challenge.from_client(call(HEADERS, 1))
        await settle()
        assert sent[0] == GO_AWAY
        challenge.from_client(ack(sent[1]))
        challenge.to_client(answer_of(1))


async def test_one_who_hangs_up_without_a_call_is_told_nothing() -> None:
    challenge, sent = begun()
    async with under_way(challenge.turn_away()):
        challenge.close()
    assert not sent


def is_question(frame: bytes) -> bool:
    return frame == ping(frame[-PAYLOAD_BYTES:])


async def test_one_who_is_silent_from_the_beginning_is_told_after_a_while_and_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(challenge_module, "HEARD_SECONDS", 0.01)
    challenge, sent = begun()
    async with under_way(challenge.turn_away()):
        pass
    told, question = sent
    assert told == GO_AWAY
    assert is_question(question)


async def test_one_who_has_been_silent_for_long_is_told_at_once() -> None:
    """Else anybody who connects and says nothing makes each stop longer."""
    challenge, sent = begun()
    challenge._began -= challenge_module.HEARD_SECONDS
    async with under_way(challenge.turn_away()):
        assert sent[0] == GO_AWAY
        challenge.from_client(ack(sent[1]))


async def test_one_who_has_called_and_does_not_read_is_waited_for_briefly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(challenge_module, "HEARD_SECONDS", 0.01)
    challenge, sent = begun()
    challenge.from_client(call(HEADERS, 1))
    async with under_way(challenge.turn_away()):
        told, question = sent
        assert told == GO_AWAY
        assert is_question(question)
        challenge.to_client(answer_of(1))


async def test_it_is_quiet_when_no_call_is_under_way() -> None:
    challenge, _ = begun()
    challenge.from_client(call(HEADERS, 1))
    challenge.to_client(answer_of(1))
    async with under_way(challenge.quiet()) as quiet:
        assert not quiet.done(), "its stream is open"
        challenge.from_client(call(HEADERS, 1, END_STREAM))  # trailers open nothing
        challenge.to_client(call(HEADERS, 1, END_STREAM))
