"""Attestors run concurrently, and a fault of one costs only its own selectors."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest

from agent.attestation.attestor import WorkloadAttestor
from agent.attestation.memory import Memory
from agent.attestation.runner import (
    HUNG_CALLS_MAX,
    NOTES_MAX,
    TEXT_CHARS,
    AttestorRunner,
    close_attestors,
)
from agent.kernel.caller import Caller
from agent.signals import NO_SIGNALS
from attestors.api import AttestorError, Findings, Selector, WorkloadRef
from tests.support.attestation import ONE, TWO, OtherAttestor, attest
from tests.support.fakes import FakeAttestor, FakeLog

PROCESS: Any = None


class Bad(FakeAttestor):
    """The attestor with the fault."""

    name = "bad"
    timeout = 0.01


def good() -> FakeAttestor:
    return FakeAttestor(frozenset({"one"}))


async def test_selectors_of_all_attestors_are_joined(me: Caller) -> None:
    attestor = WorkloadAttestor([good(), OtherAttestor(frozenset({"two"}))], FakeLog().log)
    attested = await attest(attestor, me)
    assert attested.selectors == {ONE, TWO}
    assert not attested.failures


async def test_attestors_run_concurrently(me: Caller) -> None:
    meeting = asyncio.Barrier(2)

    async def meet(_workload: WorkloadRef) -> Findings:
        await meeting.wait()
        return Findings()

    attestor = WorkloadAttestor([FakeAttestor(meet), OtherAttestor(meet)], FakeLog().log)
    assert not (await attest(attestor, me)).failures


async def test_notes_of_an_attestor_are_in_the_result(me: Caller) -> None:
    async def find(_workload: WorkloadRef) -> Findings:
        return Findings(notes=("not readable",))

    attested = await attest(WorkloadAttestor([FakeAttestor(find)], FakeLog().log), me)
    assert attested.notes == ("not readable",)


# --- what attest may raise or return --------------------------------------------------------------


async def fails(_workload: WorkloadRef) -> Findings:
    raise AttestorError("the engine is down")


async def breaks(_workload: WorkloadRef) -> Findings:
    raise ZeroDivisionError


async def exits(_workload: WorkloadRef) -> Findings:
    raise SystemExit(1)


async def cancels_itself(_workload: WorkloadRef) -> Findings:
    raise asyncio.CancelledError


async def breaks_in_a_group(_workload: WorkloadRef) -> Findings:
    raise BaseExceptionGroup("both", [SystemExit(1), ValueError()])


class UnprintableError(AttestorError):
    def __str__(self) -> str:
        raise ValueError


async def fails_without_text(_workload: WorkloadRef) -> Findings:
    raise UnprintableError


async def never_answers(_workload: WorkloadRef) -> Findings:
    await asyncio.Event().wait()
    raise AssertionError


async def times_out_itself(_workload: WorkloadRef) -> Findings:
    raise TimeoutError


async def loses_its_process(_workload: WorkloadRef) -> Findings:
    raise ProcessLookupError


def returns(anything: object) -> Callable[[WorkloadRef], Any]:
    async def find(_workload: WorkloadRef) -> object:
        return anything

    return find


def constructs(**findings: Any) -> Callable[[WorkloadRef], Any]:
    async def find(_workload: WorkloadRef) -> Findings:
        return Findings(**findings)

    return find


def is_no_coroutine(_workload: WorkloadRef) -> Any:
    return Findings()


@pytest.mark.parametrize(
    ("behave", "reason"),
    [
        (fails, "the engine is down"),
        (breaks, "internal error: ZeroDivisionError"),
        (exits, "internal error: SystemExit"),
        (cancels_itself, "internal error: CancelledError"),
        (breaks_in_a_group, "internal error: BaseExceptionGroup"),
        (fails_without_text, "internal error: ValueError"),
        (never_answers, "did not answer within 0.01 s"),
        (times_out_itself, "a request of it timed out"),
        (loses_its_process, "the process exited"),
        (is_no_coroutine, "internal error: TypeError"),
        (returns(None), "returned NoneType instead of Findings"),
        (returns({Selector("bad", "x")}), "returned set instead of Findings"),
        (
            returns(Findings(frozenset({TWO, Selector("unix", "uid:0")}))),
            "returned selectors of other types: other, unix",
        ),
        (constructs(selectors=frozenset({"bad:x"})), "internal error: TypeError"),
        (constructs(selectors="bad:x"), "internal error: TypeError"),
        (constructs(selectors=None), "internal error: TypeError"),
        (constructs(notes=[None]), "internal error: TypeError"),
        (constructs(notes="a note"), "internal error: TypeError"),
        (constructs(pending=[7]), "internal error: TypeError"),
        (constructs(pending="later"), "internal error: TypeError"),
    ],
)
async def test_fault_of_an_attestor_costs_only_its_own_selectors(
    me: Caller, behave: Callable[[WorkloadRef], Any], reason: str
) -> None:
    attestor = WorkloadAttestor([Bad(behave), good()], FakeLog().log)
    attested = await attest(attestor, me)
    assert attested.selectors == {ONE}
    assert attested.failures == {"bad": reason}


async def test_selectors_of_any_collection_are_taken(me: Caller) -> None:
    for selectors in ([ONE], {ONE}, (ONE,)):
        attestor = WorkloadAttestor([FakeAttestor(constructs(selectors=selectors))], FakeLog().log)
        attested = await attest(attestor, me)
        assert hash(attested.selectors) == hash(frozenset({ONE}))


async def test_text_of_an_attestor_is_bounded(me: Caller) -> None:
    async def find(_workload: WorkloadRef) -> Findings:
        return Findings(notes=("n" * 100_000,) * 1000, pending=("p" * 100_000,))

    async def fail(_workload: WorkloadRef) -> Findings:
        raise AttestorError("e" * 100_000)

    attested = await attest(WorkloadAttestor([FakeAttestor(find), Bad(fail)], FakeLog().log), me)
    assert len(attested.notes) == NOTES_MAX
    assert {len(text) for text in attested.notes} == {TEXT_CHARS}
    assert {len(text) for text in attested.failures.values()} == {TEXT_CHARS}


async def test_tracebacks_of_a_broken_attestor_are_rate_limited(me: Caller) -> None:
    lines = FakeLog()
    attestor = WorkloadAttestor([FakeAttestor(breaks)], lines.log)
    for _ in range(100):
        await attest(attestor, me)
    logged = lines.of("internal error")
    assert logged[0]["exc_info"]
    assert {(line["where"], line["attestor"]) for line in logged} == {("attestor", "fake")}
    assert len(logged) == 5


async def test_foreign_selectors_are_logged_at_a_limited_rate(me: Caller) -> None:
    lines = FakeLog()
    foreign = Findings(frozenset(Selector(f"type{n}", "x") for n in range(1000)))
    attestor = WorkloadAttestor([FakeAttestor(returns(foreign))], lines.log)
    for _ in range(100):
        await attest(attestor, me)
    logged = lines.of("attestor returned foreign selectors")
    assert len(logged) == len(logged[0]["types"]) == 5


# --- what attest may never end --------------------------------------------------------------------


class Hanging:
    """An attest that ignores its cancellation until `release` is called."""

    def __init__(self) -> None:
        self.calls = 0
        self._released = asyncio.Event()

    async def __call__(self, _workload: WorkloadRef) -> Findings:
        self.calls += 1
        while not self._released.is_set():
            try:
                await self._released.wait()
            except asyncio.CancelledError:
                continue
        return Findings(frozenset({Selector("bad", "late")}))

    def release(self) -> None:
        self._released.set()


def runner(*attestors: FakeAttestor, log: FakeLog | None = None) -> AttestorRunner:
    return AttestorRunner(attestors, (log or FakeLog()).log, NO_SIGNALS, grace_seconds=0.01)


def nothing_remembered() -> Memory:
    return Memory(cast("Any", None), None)


async def test_attestor_that_ignores_its_cancellation_holds_up_no_call() -> None:
    hanging = Hanging()
    running = runner(Bad(hanging), good())
    bad, other = await running.run(PROCESS, nothing_remembered())
    assert bad.failure == "did not end after its time limit of 0.01 s"
    assert other.findings.selectors == {ONE}
    hanging.release()
    await running.close()


async def test_attestor_with_many_hung_calls_is_not_called_until_one_ends() -> None:
    hanging = Hanging()
    running = runner(Bad(hanging))
    async with asyncio.TaskGroup() as tasks:
        for _ in range(HUNG_CALLS_MAX):
            tasks.create_task(running.run(PROCESS, nothing_remembered()))
    [report] = await running.run(PROCESS, nothing_remembered())
    assert report.failure == "did not end after its time limit of 0.01 s"
    assert hanging.calls == HUNG_CALLS_MAX
    hanging.release()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    [report] = await running.run(PROCESS, nothing_remembered())
    assert report.findings.selectors == {Selector("bad", "late")}
    await running.close()


async def test_cancelled_call_cancels_its_attestors() -> None:
    cancelled, begun = asyncio.Event(), asyncio.Event()

    async def find(_workload: WorkloadRef) -> Findings:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        raise AssertionError

    running = runner(FakeAttestor(find))
    call = asyncio.get_running_loop().create_task(running.run(PROCESS, nothing_remembered()))
    await begun.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert cancelled.is_set()


# --- close ----------------------------------------------------------------------------------------


class Closing(FakeAttestor):
    """An attestor whose close does as the test says."""

    def __init__(self, behave: Callable[[], Any]) -> None:
        super().__init__()
        self._behave = behave

    async def close(self) -> None:
        await self._behave()


async def close_raises() -> None:
    raise OSError("the socket is gone")


async def close_exits() -> None:
    raise SystemExit(1)


async def close_never_ends() -> None:
    while True:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return


def close_is_no_coroutine() -> None:
    return None


@pytest.mark.parametrize(
    ("behave", "event"),
    [
        (close_raises, "internal error"),
        (close_exits, "internal error"),
        (close_is_no_coroutine, "internal error"),
        (close_never_ends, "attestor not closed"),
    ],
)
async def test_attestor_that_does_not_close_leaves_no_other_open(
    behave: Callable[[], Any], event: str
) -> None:
    lines = FakeLog()
    others = [FakeAttestor(), FakeAttestor()]
    await close_attestors([others[0], Closing(behave), others[1]], lines.log, seconds=0.01)
    assert all(other.closed for other in others)
    [line] = lines.of(event)
    assert line["attestor"] == "fake"


async def test_close_closes_every_attestor() -> None:
    attestors = [FakeAttestor(), OtherAttestor()]
    await WorkloadAttestor(attestors, FakeLog().log).close()
    assert all(attestor.closed for attestor in attestors)
    await WorkloadAttestor([], FakeLog().log).close()
