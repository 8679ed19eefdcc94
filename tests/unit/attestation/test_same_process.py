"""Selectors count only if the process stays what it was."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.attestation import attestor as attestation_module
from agent.attestation.attestor import WorkloadAttestor
from agent.errors import PeerError, PeerGoneError
from agent.kernel.caller import Caller
from agent.kernel.fingerprint import Fingerprint, ProgramPin, read_fingerprint
from agent.kernel.process import ProcessHandle, ProcessView
from attestors.api import Findings, Selector, WorkloadRef
from tests.support import pids
from tests.support.fakes import FakeAttestor, Lines
from tests.unit.attestation.conftest import ONE, attested, caller_of


async def test_one_who_dies_meanwhile_gets_nothing() -> None:
    with caller_of() as (caller, pid):

        async def kill(_workload: WorkloadRef) -> Findings:
            pids.kill_and_reap(pid)
            return Findings(frozenset({ONE}))

        with pytest.raises(PeerGoneError):
            await attested(WorkloadAttestor([FakeAttestor(kill)], Lines().log), caller)


async def test_nor_does_a_zombie() -> None:
    with caller_of() as (caller, pid):

        async def kill(_workload: WorkloadRef) -> Findings:
            os.kill(pid, signal.SIGKILL)
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
            return Findings(frozenset({ONE}))

        with pytest.raises(PeerGoneError):
            await attested(WorkloadAttestor([FakeAttestor(kill)], Lines().log), caller)


async def test_nor_does_one_who_dies_at_the_very_end(
    me: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the last look at /proc, and before the answer: the pidfd has the last word."""
    is_alive, close = [True], ProcessView.close

    def die_after_the_last_read(view: ProcessView) -> None:
        is_alive.clear()
        close(view)

    monkeypatch.setattr(ProcessView, "close", die_after_the_last_read)
    monkeypatch.setattr(ProcessHandle, "is_alive", lambda _self: bool(is_alive))
    with pytest.raises(PeerGoneError, match="while it was attested"):
        await attested(WorkloadAttestor([FakeAttestor(frozenset({"one"}))], Lines().log), me)


async def test_one_who_is_dead_already_is_not_looked_at() -> None:
    asked = []

    async def ask(workload: WorkloadRef) -> Findings:
        asked.append(workload)
        return Findings()

    with caller_of() as (caller, pid):
        pids.kill_and_reap(pid)
        with pytest.raises(PeerGoneError):
            await attested(WorkloadAttestor([FakeAttestor(ask)], Lines().log), caller)
    assert not asked


async def test_another_program_in_the_middle_is_noticed() -> None:
    """The child execs while it is attested: what was found may be true of either program."""
    go_read, go = os.pipe()
    gone, gone_write = os.pipe()
    os.set_inheritable(gone_write, False)

    def exec_when_told() -> None:
        os.read(go_read, 1)
        os.execv("/bin/sleep", ["sleep", "30"])  # noqa: S606

    with caller_of(exec_when_told) as (caller, _pid):
        os.close(gone_write)

        async def swap(_workload: WorkloadRef) -> Findings:
            os.write(go, b"!")
            # The child's descriptor closes at exec: the end of the pipe says that it happened.
            await asyncio.to_thread(os.read, gone, 1)
            return Findings(frozenset({ONE}))

        with pytest.raises(PeerError, match="changed its program or user while"):
            await attested(WorkloadAttestor([FakeAttestor(swap)], Lines().log), caller)
    for descriptor in (go_read, go, gone):
        os.close(descriptor)


async def test_the_process_must_still_be_who_connected(me: Caller) -> None:
    attestor = WorkloadAttestor([FakeAttestor()], Lines().log)
    for change, reason in [
        ({"uid": me.credentials.uid + 1}, "changed its user or group"),
        ({"gid": me.credentials.gid + 1}, "changed its user or group"),
        ({"groups": (*me.credentials.groups, 4242)}, "supplementary groups"),
    ]:
        # As if it had connected as somebody else and then become what it is.
        other = replace(me, credentials=replace(me.credentials, **change))  # type: ignore[arg-type]
        with pytest.raises(PeerError, match=reason):
            await attested(attestor, other)


async def test_a_gained_group_counts_as_a_change(me: Caller) -> None:
    if not me.credentials.groups:
        pytest.skip("this user has no supplementary groups to lose")
    fewer = replace(me, credentials=replace(me.credentials, groups=me.credentials.groups[1:]))
    with pytest.raises(PeerError, match="supplementary groups"):
        await attested(WorkloadAttestor([FakeAttestor()], Lines().log), fewer)


def test_the_fingerprint_of_a_zombie_is_no_fingerprint() -> None:
    with caller_of() as (caller, pid), caller.open_proc() as view:
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(PeerGoneError):
            read_fingerprint(view)


def test_an_executable_that_may_not_be_looked_at(
    me: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    with me.open_proc() as view:

        def refuse(_name: str) -> os.stat_result:
            raise PermissionError

        monkeypatch.setattr(view, "stat", refuse)
        assert read_fingerprint(view).executable is None


async def test_the_same_program_again_is_another_program() -> None:
    """Executable, user, cgroup: all is as before. Only the address space is another."""
    go_read, go = os.pipe()
    gone, gone_write = os.pipe()

    def exec_when_told() -> None:
        os.read(go_read, 1)
        os.execv(sys.executable, [sys.executable, "-c", "import signal; signal.pause()"])  # noqa: S606

    with caller_of(exec_when_told) as (caller, pid):
        os.close(gone_write)

        async def swap(_workload: WorkloadRef) -> Findings:
            os.write(go, b"!")
            await asyncio.to_thread(os.read, gone, 1)
            return Findings(frozenset({ONE}))

        executable = Path(f"/proc/{pid}/exe").stat()
        with pytest.raises(PeerError, match="changed its program"):
            await attested(WorkloadAttestor([FakeAttestor(swap)], Lines().log), caller)
        assert Path(f"/proc/{pid}/exe").stat() == executable
    for descriptor in (go_read, go, gone):
        os.close(descriptor)


def test_a_process_without_an_environment_is_pinned_too() -> None:
    go_read, go = os.pipe()
    gone, gone_write = os.pipe()

    def lose_the_environment() -> None:
        os.close(gone)
        os.read(go_read, 1)
        os.execve("/bin/sleep", ["sleep", "30"], {})  # noqa: S606

    with caller_of(lose_the_environment) as (caller, _pid):
        os.close(gone_write)
        os.write(go, b"!")
        os.read(gone, 1)
        with caller.open_proc() as view, closing(ProgramPin(view)) as pin:
            assert view.read("environ") == b""
            assert pin.holds
            assert not pin.changed()
    for descriptor in (go_read, go, gone):
        os.close(descriptor)


@pytest.mark.parametrize(
    "change",
    [
        {"cgroup": b"0::/elsewhere"},
        {"user_namespace": "user:[1]"},
        {"mount_namespace": "mnt:[1]"},
        {"cgroup_namespace": "cgroup:[1]"},
        {"executable": (1, 2, 3, 4, 5)},
        {"ids": (b"0", b"0", b"4711")},
    ],
)
async def test_whatever_changes_meanwhile_ends_the_attestation(
    me: Caller, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    looks: list[Fingerprint] = []

    def look(view: ProcessView) -> Fingerprint:
        found = read_fingerprint(view)
        looks.append(found)
        return found if len(looks) == 1 else found._replace(**change)

    monkeypatch.setattr(attestation_module, "read_fingerprint", look)
    with pytest.raises(PeerError, match="while it was attested"):
        await attested(WorkloadAttestor([FakeAttestor()], Lines().log), me)


def test_the_fingerprint_is_what_proc_says(me: Caller) -> None:
    with me.open_proc() as view:
        found = read_fingerprint(view)
    assert found.cgroup == Path("/proc/self/cgroup").read_bytes()
    assert found.user_namespace == str(Path("/proc/self/ns/user").readlink())
    assert found.mount_namespace == str(Path("/proc/self/ns/mnt").readlink())
    assert found.cgroup_namespace == str(Path("/proc/self/ns/cgroup").readlink())
    assert found.executable is not None
    assert found.executable[1] == Path("/proc/self/exe").stat().st_ino


async def find_program(_workload: WorkloadRef) -> Findings:
    who, what = Selector("fake", "who"), Selector("fake", "what")
    return Findings(frozenset({who, what}), program=frozenset({what}))


async def test_in_a_foreign_user_namespace_the_program_proves_nothing(
    me: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    attestor = WorkloadAttestor([FakeAttestor(find_program)], Lines().log)
    assert (await attested(attestor, me)).program == {Selector("fake", "what")}
    monkeypatch.setattr(attestation_module, "own_user_namespace", lambda: "user:[1]")
    found = await attested(attestor, me)
    assert found.selectors == {Selector("fake", "who")}
    assert found.program == frozenset()
    assert "user namespace of its own" in found.notes[0]


async def test_nor_does_it_where_the_agent_may_not_look(
    me: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_self: ProcessView, _name: str) -> int:
        raise PermissionError

    monkeypatch.setattr(ProcessView, "open", refuse)
    monkeypatch.setattr(
        ProcessView, "read", lambda _self, name: Path(f"/proc/self/{name}").read_bytes()
    )
    attestor = WorkloadAttestor([FakeAttestor(find_program)], Lines().log)
    assert (await attested(attestor, me)).selectors == {Selector("fake", "who")}
