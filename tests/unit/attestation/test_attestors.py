"""Attestors at once and in time; what one of them fails at costs the others nothing."""

from __future__ import annotations

import asyncio

import pytest

from agent.attestation.attestor import WorkloadAttestor
from agent.kernel.caller import Caller
from attestors.api import AttestorError, Findings, Selector, WorkloadRef
from tests.support.fakes import FakeAttestor, Lines
from tests.unit.attestation.conftest import ONE, TWO, OtherAttestor, attested


class SlowAttestor(FakeAttestor):
    name = "slow"
    timeout = 0.01


async def test_selectors_of_all_attestors_are_joined(me: Caller) -> None:
    attestor = WorkloadAttestor(
        [FakeAttestor(frozenset({"one"})), OtherAttestor(frozenset({"two"}))], Lines().log
    )
    found = await attested(attestor, me)
    assert found.selectors == {ONE, TWO}
    assert not found.failures


async def test_they_run_at_the_same_time(me: Caller) -> None:
    meeting = asyncio.Barrier(2)

    async def meet(_workload: WorkloadRef) -> Findings:
        await meeting.wait()
        return Findings()

    attestor = WorkloadAttestor([FakeAttestor(meet), OtherAttestor(meet)], Lines().log)
    async with asyncio.timeout(5):
        await attested(attestor, me)


async def failing(_workload: WorkloadRef) -> Findings:
    raise AttestorError("the engine is down")


async def broken(_workload: WorkloadRef) -> Findings:
    raise ZeroDivisionError


async def never(_workload: WorkloadRef) -> Findings:
    await asyncio.Event().wait()
    raise AssertionError


async def boastful(_workload: WorkloadRef) -> Findings:
    return Findings(frozenset({TWO, Selector("unix", "uid:0")}))


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (SlowAttestor(failing), "the engine is down"),
        (SlowAttestor(broken), "broke: ZeroDivisionError"),
        (SlowAttestor(never), "did not answer within 0.01 s"),
        (SlowAttestor(boastful), "claimed selectors of other types: other, unix"),
    ],
)
async def test_a_failed_attestor_costs_its_own_selectors_only(
    me: Caller, bad: FakeAttestor, reason: str
) -> None:
    attestor = WorkloadAttestor([bad, FakeAttestor(frozenset({"one"}))], Lines().log)
    found = await attested(attestor, me)
    assert found.selectors == {ONE}
    assert found.failures == {"slow": reason}


async def test_what_a_plug_in_breaks_on_is_logged_for_its_author(me: Caller) -> None:
    lines = Lines()
    await attested(WorkloadAttestor([FakeAttestor(broken)], lines.log), me)
    [line] = lines.of("internal error")
    assert line["exc_info"]


async def test_notes_reach_the_operator(me: Caller) -> None:
    async def find(_workload: WorkloadRef) -> Findings:
        return Findings(notes=("not readable",))

    found = await attested(WorkloadAttestor([FakeAttestor(find)], Lines().log), me)
    assert found.notes == ("not readable",)


async def test_close_closes_them_all() -> None:
    attestors = [FakeAttestor(), OtherAttestor()]
    await WorkloadAttestor(attestors, Lines().log).close()
    assert all(attestor.closed for attestor in attestors)
