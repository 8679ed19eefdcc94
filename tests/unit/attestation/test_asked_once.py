"""What an attestor has said is remembered while the process does not change."""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest

from agent.attestation import attestor as attestation_module
from agent.attestation.attestor import WorkloadAttestor
from agent.errors import NoIdentityError, PeerError
from agent.kernel.caller import Caller, Proof
from agent.kernel.fingerprint import read_fingerprint
from agent.kernel.inspect import process_by_pid
from agent.kernel.process import ProcessHandle
from attestors.api import AttestorError, Findings, WorkloadRef
from tests.support.fakes import FakeAttestor, Lines
from tests.unit.attestation.conftest import ONE, attested, caller_of


class LastingAttestor(FakeAttestor):
    reuse_seconds = 60.0
    reuse_across_connections = True


class OfOneConnection(LastingAttestor):
    reuse_across_connections = False


def counting(
    kind: type[LastingAttestor] = LastingAttestor, *, notes: tuple[str, ...] = ()
) -> tuple[WorkloadAttestor, list[int]]:
    """It asks one attestor of this kind; and about which processes it has."""
    asked: list[int] = []

    async def find(workload: WorkloadRef) -> Findings:
        asked.append(workload.pid)
        return Findings(frozenset({ONE}), notes=notes)

    return WorkloadAttestor([kind(find)], Lines().log), asked


def change(monkeypatch: pytest.MonkeyPatch, **fields: Any) -> None:
    """From now on every process has these in its fingerprint."""
    monkeypatch.setattr(
        attestation_module,
        "read_fingerprint",
        lambda view: read_fingerprint(view)._replace(**fields),
    )


async def refused_again_and_again(attestor: WorkloadAttestor, caller: Caller) -> None:
    for _ in range(2):
        with pytest.raises(PeerError, match="changed its user or group after it connected"):
            await attested(attestor, caller)


async def test_of_an_unchanged_process_an_attestor_may_be_asked_once(me: Caller) -> None:
    attestor, asked = counting()
    for connection in (me, me, replace(me)):
        assert (await attested(attestor, connection)).selectors == {ONE}
    assert len(asked) == 1
    with caller_of() as (other, _pid):
        await attested(attestor, other)
    assert len(asked) == 2, "another process has a memory of its own"


async def test_on_another_connection_only_one_that_allows_it_is_not_asked(me: Caller) -> None:
    """What an engine says of a container may be another by the next connection."""
    attestor, asked = counting(OfOneConnection)
    connections = [me, replace(me)]
    for connection in (*connections, *connections):
        assert (await attested(attestor, connection)).selectors == {ONE}
    assert len(asked) == len(connections)


async def test_what_is_missing_is_looked_for_anew_on_the_next_connection(me: Caller) -> None:
    """Whoever repairs it connects again to see whether it helped."""
    attestor, asked = counting(notes=("the user has no name",))
    for connection in (me, me, replace(me)):
        await attested(attestor, connection)
    assert len(asked) == 2


async def test_a_program_that_was_renamed_is_called_by_its_new_name(
    me: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    attestor, _asked = counting()
    await attested(attestor, me)
    monkeypatch.setattr(attestation_module, "executable_name", lambda _view: "/new/name")
    assert (await attested(attestor, replace(me))).executable == "/new/name"


async def test_nothing_is_taken_from_one_whom_the_kernel_did_not_pin(me: Caller) -> None:
    """Nor from a process that an operator had a look at, which connected to nothing."""
    attestor, asked = counting()
    with closing(process_by_pid(os.getpid())) as looked_at:
        for caller in (replace(me, proof=Proof.PIDFD_OPEN), me, looked_at):
            await attested(attestor, caller)
    assert len(asked) == 3


async def test_where_processes_have_no_number_of_their_own_each_connection_has_a_memory(
    me: Caller,
) -> None:
    """Without pidfs a PID may be somebody else's by the next connection."""
    attestor, asked = counting()
    for number in range(2):
        handle = ProcessHandle(os.pidfd_open(os.getpid()))
        handle.inode, handle.name = None, f"connection:{number}"
        with closing(replace(me, process=handle)) as connection:
            await attested(attestor, connection)
    assert len(asked) == 2


@pytest.mark.parametrize("reconnects", [False, True])
async def test_of_a_changed_one_it_is_asked_again(
    me: Caller, monkeypatch: pytest.MonkeyPatch, *, reconnects: bool
) -> None:
    attestor, asked = counting()
    await attested(attestor, me)
    change(monkeypatch, cgroup=b"0::/elsewhere")
    await attested(attestor, replace(me) if reconnects else me)
    assert len(asked) == 2


async def test_who_connected_as_another_user_is_not_taken_for_what_the_process_is_now(
    me: Caller,
) -> None:
    """What is known of the process is true; but this connection was made by somebody else."""
    attestor, asked = counting()
    await attested(attestor, me)
    before = replace(me, credentials=replace(me.credentials, uid=me.credentials.uid + 1))
    await refused_again_and_again(attestor, before)
    assert len(asked) == 1


async def test_what_a_refused_attestation_found_is_not_remembered(me: Caller) -> None:
    attestor, asked = counting()
    with pytest.raises(NoIdentityError):
        async with attestor.attest(me):
            raise NoIdentityError("refused")
    await attested(attestor, me)
    assert len(asked) == 2


async def test_nor_is_a_failure(me: Caller) -> None:
    asked = []

    async def fail(workload: WorkloadRef) -> Findings:
        asked.append(workload.pid)
        raise AttestorError("down")

    attestor = WorkloadAttestor([LastingAttestor(fail)], Lines().log)
    for _ in range(2):
        assert (await attested(attestor, me)).failures
    assert len(asked) == 2


async def test_nor_may_a_known_one_change_its_program_though_nobody_is_asked_again() -> None:
    go_read, go = os.pipe()
    gone, gone_write = os.pipe()

    def exec_when_told() -> None:
        os.read(go_read, 1)
        os.execv(sys.executable, [sys.executable, "-c", "import signal; signal.pause()"])  # noqa: S606

    with caller_of(exec_when_told) as (caller, _pid):
        os.close(gone_write)
        attestor, asked = counting()
        await attested(attestor, caller)

        async def swap_within() -> None:
            async with attestor.attest(caller):
                os.write(go, b"!")
                await asyncio.to_thread(os.read, gone, 1)

        with pytest.raises(PeerError, match="changed its program"):
            await swap_within()
        assert len(asked) == 1
        assert attestor.latest(caller) is None
    for descriptor in (go_read, go, gone):
        os.close(descriptor)


async def test_a_known_one_who_has_another_user_now_is_refused(
    me: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    attestor, asked = counting()
    await attested(attestor, me)
    change(monkeypatch, ids=(b"4711", b"4711", b""))
    await refused_again_and_again(attestor, me)
    assert len(asked) == 1
