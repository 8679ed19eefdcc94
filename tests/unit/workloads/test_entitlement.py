"""Entitlement: which identities a caller gets, and when it must prove that it sends."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from agent.attestation.attestor import Evidence, WorkloadAttestor
from agent.attestation.result import Attested
from agent.entries.entry import Entry, EntryId, EntrySet
from agent.entries.template import SpiffeIdTemplate
from agent.errors import AttestationError, NoIdentityError, PeerError, UnansweredError
from agent.kernel.caller import Caller
from agent.kernel.fingerprint import Fingerprint, read_fingerprint
from agent.kernel.process import ProcessView
from agent.spiffe.ids import SpiffeId, TrustDomain
from agent.telemetry.throttled_log import PER_KEY, Rate
from agent.workloads.entitlement import Entitlements
from attestors.api import AttestorError, Findings, Selector, WorkloadRef
from tests.support.fakes import FakeAttestor, FakeClock, FakeLog

USER, PROGRAM = Selector("fake", "user"), Selector("fake", "program:x")


async def find(_workload: WorkloadRef) -> Findings:
    return Findings(frozenset({USER, PROGRAM}), program=frozenset({PROGRAM}))


async def fail(_workload: WorkloadRef) -> Findings:
    raise AttestorError("no answer")


class Site:
    """One entry for each selector. `proved` are the callers that had to prove that they send."""

    def __init__(
        self,
        *selectors: Selector,
        lines_per_user: Rate = PER_KEY,
        clock: FakeClock | None = None,
        attest: Callable[[WorkloadRef], Awaitable[Findings]] = find,
    ) -> None:
        self.lines = FakeLog()
        self.proved: list[Caller] = []
        self.error: Exception | None = None
        self.while_proving: Callable[[], object] = lambda: None
        self.entitlements = Entitlements(
            WorkloadAttestor([FakeAttestor(attest)], FakeLog().log),
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


async def test_a_caller_with_an_identity_for_its_program_must_prove_that_it_sends(
    me: Caller,
) -> None:
    site = Site(USER, PROGRAM)
    assert len((await site.entitlements.of(me)).identities) == 2
    assert site.proved == [me]


async def test_a_caller_that_does_not_prove_that_it_sends_gets_nothing(me: Caller) -> None:
    site = Site(USER, PROGRAM)
    site.error = UnansweredError("silence")
    with pytest.raises(UnansweredError):
        await site.entitlements.of(me)


async def test_a_caller_with_an_identity_for_its_user_need_not_prove_that_it_sends(
    me: Caller,
) -> None:
    site = Site(USER)
    assert len((await site.entitlements.of(me)).identities) == 1
    assert site.proved == []


async def test_a_review_that_releases_nothing_needs_no_proof(me: Caller) -> None:
    site = Site(PROGRAM)
    assert len((await site.entitlements.of(me, releasing=False)).identities) == 1
    assert site.proved == []


async def test_a_caller_whose_spiffe_id_names_its_program_must_prove_that_it_sends(
    me: Caller,
) -> None:
    """The entry selects by the user; its template takes the program into the SPIFFE ID."""
    site = Site(USER)
    template = SpiffeIdTemplate(TrustDomain("example.org"), "/program/{fake:program}")
    [entry] = site.entitlements.entries.entries
    site.entitlements.entries = EntrySet((replace(entry, spiffe_id=template),))
    [identity] = (await site.entitlements.of(me)).identities
    assert identity.spiffe_id.path == "/program/x"
    assert site.proved == [me]


async def test_entries_replaced_during_the_proof_count_at_once(me: Caller) -> None:
    site = Site(USER, PROGRAM)
    [for_user, _for_program] = site.entitlements.entries.entries

    def remove_one() -> None:
        site.entitlements.entries = EntrySet((for_user,))

    site.while_proving = remove_one
    [identity] = (await site.entitlements.of(me)).identities
    assert identity.entry_id == for_user.id


async def test_the_attestation_is_kept_with_the_identities(me: Caller) -> None:
    entitlement = await Site(USER).entitlements.of(me)
    assert entitlement.attestation is not None
    assert USER in entitlement.attestation.selectors
    assert entitlement.complete


async def test_lines_about_a_failing_attestor_are_limited(me: Caller) -> None:
    site = Site(USER, attest=fail)
    for _ in range(20):
        with pytest.raises(AttestationError):
            await site.entitlements.of(me)
    assert len(site.lines.of("attestor failed")) == PER_KEY.at_once


async def test_reason_of_a_missing_match_is_logged_at_a_limited_rate(me: Caller) -> None:
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


async def test_a_match_is_reused_only_while_entries_and_time_give_the_same(me: Caller) -> None:
    """The attestation is reused: the same selectors match other entries, or at another time."""
    clock, lines = FakeClock(), FakeLog()
    ends = clock.now() + timedelta(minutes=1)

    async def prove(_caller: Caller) -> None:
        pass

    def entry(number: int, expires_at: datetime | None = None) -> Entry:
        return Entry(
            id=EntryId(f"{number}"),
            spiffe_id=SpiffeId(TrustDomain("example.org"), f"/{number}"),
            selectors=frozenset({USER}),
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
    """A clock that advances one second at each reading."""

    def now(self) -> datetime:
        self.set(super().now() + timedelta(seconds=1))
        return super().now()


async def test_an_entry_that_expires_during_the_explanation_is_matched_or_missed() -> None:
    clock = RunningClock()
    site = Site(USER, clock=clock)
    [entry] = site.entitlements.entries.entries
    attested = Attested(selectors=entry.selectors)
    for seconds in range(1, 5):
        expiring = replace(entry, expires_at=clock.now() + timedelta(seconds=seconds))
        site.entitlements.entries = EntrySet((expiring,))
        verdict = site.entitlements.explain(attested)
        assert len(verdict.matched) + len(verdict.missed) == 1


async def test_a_process_that_changes_while_it_is_asked_is_refused_whatever_is_remembered(
    me: Caller,
) -> None:
    """Another process can keep the pin's address space alive: the pin alone notices nothing."""
    site = Site(PROGRAM)
    cgroup = b"trusted"

    def fingerprint(view: ProcessView) -> Fingerprint:
        return read_fingerprint(view)._replace(cgroup=cgroup)

    attestor = Remembered(find)
    site.entitlements._attestor = WorkloadAttestor(
        [attestor], FakeLog().log, evidence=Evidence(fingerprint=fingerprint)
    )
    for _ in range(2):
        await site.entitlements.of(me)

    def execute() -> None:
        nonlocal cgroup
        cgroup = b"another"

    site.while_proving = execute
    with pytest.raises(PeerError, match="changed its program"):
        await site.entitlements.of(me)
    assert len(site.proved) == 3
