"""A child process that exits, or executes a program, during its attestation gets nothing."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from agent.attestation.attestor import WorkloadAttestor
from agent.errors import PeerError, PeerGoneError
from agent.kernel.caller import Caller
from agent.kernel.fingerprint import ProgramPin, read_fingerprint
from attestors.api import AttestorError, Findings, WorkloadRef
from tests.support import pids
from tests.support.attestation import ONE, attest
from tests.support.fakes import FakeAttestor, FakeLog
from tests.support.peers import child_caller

PYTHON = [sys.executable, "-c", "import signal; signal.pause()"]
SLEEP = ["/bin/sleep", "30"]


class Lasting(FakeAttestor):
    reuse_seconds = 60.0
    reuse_across_connections = True


class Executing:
    """A child that executes `command` on the test's signal, with its Caller."""

    def __init__(self, caller: Caller, go: int, gone: int) -> None:
        self.caller = caller
        self._go = go
        self._gone = gone

    def execute(self) -> None:
        """Return when the child runs the command: its end of a pipe closes at exec."""
        os.write(self._go, b"!")
        os.read(self._gone, 1)


@contextmanager
def executing(command: list[str], environment: dict[str, str] | None = None) -> Iterator[Executing]:
    go_read, go = os.pipe()
    gone, gone_write = os.pipe()

    def execute_when_told(_sock: object) -> None:
        os.close(gone)
        os.read(go_read, 1)
        os.execve(command[0], command, os.environ if environment is None else environment)  # noqa: S606

    with child_caller(execute_when_told) as (_pid, caller):
        os.close(gone_write)
        yield Executing(caller, go, gone)
    for descriptor in (go_read, go, gone):
        os.close(descriptor)


def dies_silently(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


@pytest.mark.parametrize("end", [pids.kill_and_reap, dies_silently], ids=["reaped", "zombie"])
async def test_process_that_exits_during_its_attestation_gets_nothing(
    end: Callable[[int], None],
) -> None:
    with child_caller() as (pid, caller):

        async def kill(_workload: WorkloadRef) -> Findings:
            end(pid)
            return Findings(frozenset({ONE}))

        with pytest.raises(PeerGoneError):
            await attest(WorkloadAttestor([FakeAttestor(kill)], FakeLog().log), caller)


async def test_exit_of_the_process_is_no_failure_of_an_attestor() -> None:
    """The error is PeerGoneError, not AttestorError: no failed engine is reported."""
    with child_caller() as (pid, caller):

        async def kill(_workload: WorkloadRef) -> Findings:
            pids.kill_and_reap(pid)
            raise AttestorError("the process exited")

        attestor = WorkloadAttestor([FakeAttestor(kill)], FakeLog().log)
        with pytest.raises(PeerGoneError):
            async with attestor.attest(caller):
                raise AssertionError


async def test_process_that_is_gone_is_not_attested() -> None:
    asked = []

    async def ask(workload: WorkloadRef) -> Findings:
        asked.append(workload)
        return Findings()

    with child_caller() as (pid, caller):
        pids.kill_and_reap(pid)
        with pytest.raises(PeerGoneError):
            await attest(WorkloadAttestor([FakeAttestor(ask)], FakeLog().log), caller)
    assert not asked


async def test_process_that_executes_another_program_is_refused() -> None:
    """The findings may be of either program."""
    with executing(SLEEP) as child:

        async def swap(_workload: WorkloadRef) -> Findings:
            await asyncio.to_thread(child.execute)
            return Findings(frozenset({ONE}))

        with pytest.raises(PeerError, match="changed its program or user while"):
            await attest(WorkloadAttestor([FakeAttestor(swap)], FakeLog().log), child.caller)


async def test_process_that_executes_its_own_program_again_is_refused() -> None:
    """Executable, user and cgroup stay the same; only the address space is new."""
    with executing(PYTHON) as child:
        executable = Path(f"/proc/{child.caller.credentials.pid}/exe")
        before = executable.stat()

        async def swap(_workload: WorkloadRef) -> Findings:
            await asyncio.to_thread(child.execute)
            return Findings(frozenset({ONE}))

        with pytest.raises(PeerError, match="changed its program"):
            await attest(WorkloadAttestor([FakeAttestor(swap)], FakeLog().log), child.caller)
        assert executable.stat() == before


async def test_process_with_remembered_findings_that_executes_a_program_is_refused() -> None:
    with executing(PYTHON) as child:
        asked = []

        async def ask(workload: WorkloadRef) -> Findings:
            asked.append(workload)
            return Findings(frozenset({ONE}))

        attestor = WorkloadAttestor([Lasting(ask)], FakeLog().log)
        await attest(attestor, child.caller)

        async def swap_within() -> None:
            async with attestor.attest(child.caller):
                await asyncio.to_thread(child.execute)

        with pytest.raises(PeerError, match="changed its program"):
            await swap_within()
        assert len(asked) == 1
        assert attestor.latest(child.caller) is None


async def test_processes_do_not_share_findings(me: Caller) -> None:
    asked = []

    async def ask(workload: WorkloadRef) -> Findings:
        asked.append(workload.pid)
        return Findings(frozenset({ONE}))

    attestor = WorkloadAttestor([Lasting(ask)], FakeLog().log)
    await attest(attestor, me)
    with child_caller() as (pid, other):
        await attest(attestor, other)
    assert asked == [os.getpid(), pid]


def test_zombie_has_no_fingerprint() -> None:
    with child_caller() as (pid, caller), caller.open_proc() as view:
        dies_silently(pid)
        with pytest.raises(PeerGoneError):
            read_fingerprint(view)


def test_process_without_an_environment_has_a_pin() -> None:
    with executing(SLEEP, environment={}) as child:
        child.execute()
        with child.caller.open_proc() as view, closing(ProgramPin(view)) as pin:
            assert view.read("environ") == b""
            assert pin.holds
            assert not pin.changed()
