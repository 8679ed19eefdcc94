"""One PING down the connection, and who waits for its answer."""

from __future__ import annotations

import asyncio

import pytest

from agent import challenge as challenge_module
from agent.challenge import Challenge
from agent.errors import PeerGoneError, UnansweredError
from agent.frames import ping

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


async def test_the_end_of_the_connection_ends_the_wait() -> None:
    challenge, sent = begun()

    async def end() -> None:
        assert sent
        challenge.close()

    outcome, _ = await asyncio.gather(challenge.prove(), end(), return_exceptions=True)
    assert isinstance(outcome, PeerGoneError)
