"""Who may have what, and who has to answer for it first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from agent.attestation.attestor import WorkloadAttestor
from agent.attestation.result import Attested
from agent.entries.entry import Entry, EntryId, EntrySet
from agent.entries.template import SpiffeIdTemplate
from agent.errors import AttestationError, NoIdentityError, UnansweredError
from agent.kernel.caller import Caller
from agent.spiffe.ids import SpiffeId, TrustDomain
from agent.telemetry.throttled_log import PER_KEY, Rate
from agent.workloads.entitlement import Entitlements
from attestors.api import AttestorError, Findings, Selector, WorkloadRef
from tests.support.fakes import FakeAttestor, FakeClock, Lines

WHO, WHAT = Selector("fake", "who"), Selector("fake", "what:x")


async def find(_workload: WorkloadRef) -> Findings:
    return Findings(frozenset({WHO, WHAT}), program=frozenset({WHAT}))


class Site:
    """Entries of one selector each, and who was asked to prove that it speaks."""

    def __init__(
        self,
        *selectors: Selector,
        lines_per_user: Rate = PER_KEY,
        clock: FakeClock | None = None,
    ) -> None:
        self.lines = Lines()
        self.proved: list[Caller] = []
        self.error: Exception | None = None
        self.while_proving: Callable[[], object] = lambda: None
        self.entitlements = Entitlements(
            WorkloadAttestor([FakeAttestor(find)], Lines().log),
            EntrySet(
                tuple(
                    Entry(
                        id=EntryId(selector.value.replace(":", "-")),
                        spiffe_id=SpiffeId(TrustDomain("example.org"), f"/{number}"),
                        selectors=frozenset({selector}),
                    )
                    for number, selector in enumerate(selectors)
                )
            ),
            self._prove,
            clock or FakeClock(),
            self.lines.log,
            lines_per_user=lines_per_user,
        )

    async def _prove(self, caller: Caller) -> None:
        self.proved.append(caller)
        self.while_proving()
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


async def test_who_gets_a_name_from_its_program_must_answer_too(me: Caller) -> None:
    """The entry wants nothing of the program; the ID that it gives is made of it."""
    site = Site(WHO)
    template = SpiffeIdTemplate(TrustDomain("example.org"), "/program/{fake:what}")
    [entry] = site.entitlements.entries.entries
    site.entitlements.entries = EntrySet((replace(entry, spiffe_id=template),))
    [identity] = (await site.entitlements.of(me)).identities
    assert identity.spiffe_id.path == "/program/x"
    assert site.proved == [me]


async def test_entries_that_change_while_somebody_answers_count_at_once(me: Caller) -> None:
    site = Site(WHO, WHAT)
    [who, _what] = site.entitlements.entries.entries

    def take_away() -> None:
        site.entitlements.entries = EntrySet((who,))

    site.while_proving = take_away
    [identity] = (await site.entitlements.of(me)).identities
    assert identity.entry_id == who.id


async def test_a_failing_attestor_does_not_fill_the_log(me: Caller) -> None:
    async def fail(_workload: WorkloadRef) -> Findings:
        raise AttestorError("no answer")

    site = Site(WHO)
    site.entitlements._attestor = WorkloadAttestor([FakeAttestor(fail)], Lines().log)
    for _ in range(20):
        with pytest.raises(AttestationError):
            await site.entitlements.of(me)
    assert len(site.lines.of("attestor failed")) == PER_KEY.at_once


async def test_what_is_found_out_is_kept_with_what_it_earns(me: Caller) -> None:
    entitlement = await Site(WHO).entitlements.of(me)
    assert entitlement.attestation is not None
    assert WHO in entitlement.attestation.selectors
    assert entitlement.complete


async def test_a_denial_says_why_in_the_log_but_not_without_end(me: Caller) -> None:
    site = Site(Selector("fake", "other"))
    for _ in range(20):
        with pytest.raises(NoIdentityError):
            await site.entitlements.of(me)
    lines = site.lines.of("no identity issued")
    assert len(lines) == PER_KEY.at_once
    [missed] = lines[0]["missed"]
    assert missed["lacking"] == [{"wanted": "fake:other", "found": []}]
    assert lines[0]["pid"] == me.credentials.pid


async def test_a_denial_line_counts_the_suppressed_ones_before_it(me: Caller) -> None:
    site = Site(Selector("fake", "other"), lines_per_user=Rate(1, 0.02))
    denied = 0
    while len(site.lines.of("no identity issued")) < 3:
        with pytest.raises(NoIdentityError):
            await site.entitlements.of(me)
        denied += 1
    lines = site.lines.of("no identity issued")
    assert sum(line.get("suppressed", 0) for line in lines) == denied - 3
    assert denied > 3


class Remembered(FakeAttestor):
    reuse_seconds = 60.0


async def test_what_was_matched_before_counts_only_while_it_would_be_again(me: Caller) -> None:
    """Nothing is found out anew about the process: entries, and the clock, are what changes."""
    clock, lines = FakeClock(), Lines()
    ends = clock.now() + timedelta(minutes=1)

    async def prove(_caller: Caller) -> None:
        pass

    def entry(number: int, expires_at: datetime | None = None) -> Entry:
        path = SpiffeId(TrustDomain("example.org"), f"/{number}")
        return Entry(
            id=EntryId(f"{number}"),
            spiffe_id=path,
            selectors=frozenset({WHO}),
            expires_at=expires_at,
        )

    attestor = WorkloadAttestor([Remembered(find)], lines.log)
    entries = EntrySet((entry(1), entry(2, ends)))
    entitlements = Entitlements(attestor, entries, prove, clock, lines.log)

    async def paths() -> list[str]:
        return [each.spiffe_id.path for each in (await entitlements.of(me)).identities]

    await paths()
    assert await paths() == ["/1", "/2"]
    clock.set(ends)
    assert await paths() == ["/1"]
    clock.set(ends - timedelta(seconds=1))
    assert await paths() == ["/1", "/2"], "the clock was set back"
    entitlements.entries = EntrySet((entry(3),))
    assert await paths() == ["/3"]


class RunningClock(FakeClock):
    """Each look at the clock takes a second."""

    def now(self) -> datetime:
        self.set(super().now() + timedelta(seconds=1))
        return super().now()


async def test_explanation_survives_an_entry_that_expires_meanwhile() -> None:
    clock = RunningClock()
    site = Site(WHO, clock=clock)
    [entry] = site.entitlements.entries.entries
    attested = Attested(selectors=entry.selectors)
    for seconds in range(1, 5):
        expiring = replace(entry, expires_at=clock.now() + timedelta(seconds=seconds))
        site.entitlements.entries = EntrySet((expiring,))
        verdict = site.entitlements.explain(attested)
        assert len(verdict.matched) + len(verdict.missed) == 1
