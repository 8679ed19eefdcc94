"""Descriptors that are kept between the attestations of a caller: bounded, and closed with it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import replace

import pytest

from agent.attestation.kept import DESCRIPTORS_OF_EACH, KeptProcesses
from agent.kernel.caller import Caller
from agent.kernel.fingerprint import ProgramPin, read_fingerprint
from agent.kernel.process import ProcessHandle


class Pin(ProgramPin):
    """A pin of a process that executes another program when the test says so."""

    has_changed = False

    def changed(self) -> bool:
        return self.has_changed or super().changed()


@pytest.fixture
def callers(me: Caller) -> Iterator[list[Caller]]:
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                closing(replace(me, process=ProcessHandle(os.pidfd_open(os.getpid()))))
            )
            for _ in range(3)
        ]


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def use(kept: KeptProcesses, caller: Caller, *, keep: bool = True) -> object:
    process = kept.take(caller)
    read_fingerprint(process.view)
    kept.give_back(caller, process, keep=keep)
    return process


def test_caller_that_calls_again_has_the_same_descriptors(callers: list[Caller]) -> None:
    kept = KeptProcesses(ProgramPin)
    before = descriptors()
    first = use(kept, callers[0])
    assert descriptors() == before + DESCRIPTORS_OF_EACH
    assert use(kept, callers[0]) is first
    assert descriptors() == before + DESCRIPTORS_OF_EACH
    callers[0].close()
    assert descriptors() == before - 1, "the pidfd and all that was kept are closed"


def test_process_that_executed_a_program_is_opened_anew(callers: list[Caller]) -> None:
    kept, before = KeptProcesses(Pin), descriptors()
    first = use(kept, callers[0])
    Pin.has_changed = True
    try:
        assert use(kept, callers[0], keep=False) is not first
    finally:
        Pin.has_changed = False
    assert descriptors() == before


def test_number_of_callers_is_bounded_and_the_oldest_goes_first(callers: list[Caller]) -> None:
    kept, before = KeptProcesses(ProgramPin, most=2), descriptors()
    for caller in (callers[0], callers[1], callers[0], callers[2]):
        use(kept, caller)
    assert [bool(caller.kept) for caller in callers] == [True, False, True]
    assert descriptors() == before + 2 * DESCRIPTORS_OF_EACH
    kept.close()
    assert descriptors() == before


def test_two_attestations_at_once_share_no_descriptor(callers: list[Caller]) -> None:
    kept, before = KeptProcesses(ProgramPin), descriptors()
    one, other = kept.take(callers[0]), kept.take(callers[0])
    assert one is not other
    for each in (one, other):
        kept.give_back(callers[0], each, keep=True)
    assert len(callers[0].kept) == 1
    callers[0].close()
    assert descriptors() == before - 1


def test_nothing_is_kept_for_a_caller_that_has_gone(callers: list[Caller]) -> None:
    kept, before = KeptProcesses(ProgramPin), descriptors()
    process = kept.take(callers[0])
    callers[0].close()
    kept.give_back(callers[0], process, keep=True)
    assert not callers[0].kept
    assert descriptors() == before - 1
