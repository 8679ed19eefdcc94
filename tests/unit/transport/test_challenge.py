"""The PINGs of the challenge: payloads, boundaries, bounds."""

from __future__ import annotations

import asyncio

import pytest

from agent.errors import PeerGoneError, UnansweredError
from agent.transport.challenge import Challenge
from agent.transport.half import PingAnswered
from tests.support.agent import SAFETY_SECONDS


class Client:
    """What a client has sent, and which questions it got."""

    def __init__(self, **options: float) -> None:
        self.queued = 100
        self.questions: list[bytes] = []
        self.challenge = Challenge(
            self.questions.append,
            lambda: self.queued,
            **options,  # type: ignore[arg-type]
        )

    def answer(self, number: int = -1, offset: int | None = None) -> None:
        """Answer a question with a frame that begins there; by default behind all that was sent."""
        payload = self.questions[number]
        self.challenge.take(PingAnswered(payload, self.queued if offset is None else offset))


async def test_the_answer_proves_the_sender() -> None:
    client = Client()
    async with asyncio.TaskGroup() as tasks:
        proof = tasks.create_task(client.challenge.prove())
        await asyncio.sleep(0)
        client.answer()
        await proof


@pytest.mark.parametrize("offset", [0, 83, 99])
async def test_an_answer_before_the_boundary_of_its_question_proves_nothing(offset: int) -> None:
    client = Client()
    async with asyncio.TaskGroup() as tasks:
        proof = tasks.create_task(client.challenge.prove())
        await asyncio.sleep(0)
        client.queued += 1000
        client.answer(offset=offset)
        await asyncio.sleep(0)
        assert not proof.done()
        client.answer(offset=100)


async def test_each_question_has_its_own_boundary() -> None:
    client = Client()
    async with asyncio.TaskGroup() as tasks:
        first = tasks.create_task(client.challenge.prove())
        await asyncio.sleep(0)
        client.queued = 200
        second = tasks.create_task(client.challenge.prove())
        await asyncio.sleep(0)
        client.answer(1, offset=150)
        client.answer(0, offset=150)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert first.done()
        assert not second.done()
        client.answer(1, offset=200)


async def test_another_payload_proves_nothing() -> None:
    client = Client()
    async with asyncio.TaskGroup() as tasks:
        proof = tasks.create_task(client.challenge.prove())
        await asyncio.sleep(0)
        client.challenge.take(PingAnswered(bytes(8), client.queued))
        await asyncio.sleep(0)
        assert not proof.done()
        client.answer()


async def test_every_question_has_a_new_payload() -> None:
    client = Client()
    async with asyncio.TaskGroup() as tasks:
        proofs = [tasks.create_task(client.challenge.prove()) for _ in range(3)]
        await asyncio.sleep(0)
        assert len(set(client.questions)) == 3
        client.answer(1)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert [proof.done() for proof in proofs] == [False, True, False]
        for number in (0, 2):
            client.answer(number)


async def test_a_client_that_does_not_answer_proves_nothing() -> None:
    client = Client(answer_seconds=0.01)
    with pytest.raises(UnansweredError, match="did not answer"):
        await client.challenge.prove()
    client.answer()


async def ask(client: Client, *, answers: bool) -> None:
    """A proof that succeeds, or one whose call is cancelled."""
    async with asyncio.TaskGroup() as tasks:
        proof = tasks.create_task(client.challenge.prove())
        await asyncio.sleep(0)
        if answers:
            client.answer()
        else:
            proof.cancel()


async def test_a_client_that_never_answers_gets_a_bounded_number_of_pings() -> None:
    """It need not read either: each PING would stay in memory until it does."""
    client = Client(most_unanswered=5)
    for _ in range(5):
        await ask(client, answers=False)
    for _ in range(3):
        with pytest.raises(UnansweredError):
            await asyncio.wait_for(client.challenge.prove(), SAFETY_SECONDS)
    assert len(client.questions) == 5


async def test_a_client_that_answers_sometimes_gets_pings_without_bound() -> None:
    client = Client(most_unanswered=5)
    for number in range(1, 20):
        await ask(client, answers=number % 4 == 0)
    assert len(client.questions) == 19


async def test_the_end_of_the_connection_fails_a_waiting_proof() -> None:
    client = Client()

    async def end() -> None:
        assert client.questions
        client.challenge.close()

    outcome, _ = await asyncio.gather(client.challenge.prove(), end(), return_exceptions=True)
    assert isinstance(outcome, PeerGoneError)
