"""Who may have what, and who has to answer for it first."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from agent.attestation import WorkloadAttestor
from agent.entitlement import Entitlements
from agent.entries import Entry, EntryId, EntrySet
from agent.errors import UnansweredError
from agent.peer import Caller, identify
from agent.spiffe import SpiffeId
from attestors.api import Findings, Selector, WorkloadRef
from tests.support.fakes import FakeAttestor, FakeClock, Lines

WHO, WHAT = Selector("fake", "who"), Selector("fake", "what")


async def find(_workload: WorkloadRef) -> Findings:
    return Findings(frozenset({WHO, WHAT}), program=frozenset({WHAT}))


@pytest.fixture
def me() -> Iterator[Caller]:
    near, far = socket.socketpair()
    with near, far:
        caller = identify(near)
    yield caller
    caller.close()


class Site:
    """Entries of one selector each, and who was asked to prove that it speaks."""

    def __init__(self, *selectors: Selector) -> None:
        self.proved: list[Caller] = []
        self.error: Exception | None = None
        self.entitlements = Entitlements(
            WorkloadAttestor([FakeAttestor(find)], Lines().log),
            EntrySet(
                tuple(
                    Entry(
                        id=EntryId(selector.value),
                        spiffe_id=SpiffeId.parse(f"spiffe://example.org/{selector.value}"),
                        selectors=frozenset({selector}),
                    )
                    for selector in selectors
                )
            ),
            self._prove,
            FakeClock(),
            Lines().log,
        )

    async def _prove(self, caller: Caller) -> None:
        self.proved.append(caller)
        if self.error is not None:
            raise self.error


async def test_who_gets_it_for_its_program_must_answer(me: Caller) -> None:
    site = Site(WHO, WHAT)
    assert len((await site.entitlements.of(me)).identities) == 2
    assert site.proved == [me]


async def test_and_gets_nothing_without(me: Caller) -> None:
    site = Site(WHO, WHAT)
    site.error = UnansweredError("silence")
    with pytest.raises(UnansweredError):
        await site.entitlements.of(me)


async def test_who_gets_it_for_its_user_need_not(me: Caller) -> None:
    site = Site(WHO)
    assert len((await site.entitlements.of(me)).identities) == 1
    assert site.proved == []


async def test_nor_must_anybody_as_long_as_nothing_is_given_out(me: Caller) -> None:
    site = Site(WHAT)
    assert len((await site.entitlements.of(me, releasing=False)).identities) == 1
    assert site.proved == []
