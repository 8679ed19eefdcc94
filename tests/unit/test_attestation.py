"""Attestors at once, in time, and only if the process stays what it was."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent import attestation as attestation_module
from agent.attestation import Attestation, WorkloadAttestor
from agent.errors import NoIdentityError, PeerError, PeerGoneError
from agent.fingerprint import Fingerprint, ProgramPin, read_fingerprint
from agent.peer import Caller, ProcessHandle, ProcessView, identify
from attestors.api import AttestorError, Findings, Selector, WorkloadRef
from tests.support import pids
from tests.support.fakes import FakeAttestor, Lines

ONE = Selector("fake", "one")
TWO = Selector("other", "two")


async def attested(attestor: WorkloadAttestor, caller: Caller) -> Attestation:
    async with attestor.attest(caller) as attestation:
        return attestation


class OtherAttestor(FakeAttestor):
    name = "other"


class SlowAttestor(FakeAttestor):
    name = "slow"
    timeout = 0.01


@contextmanager
def caller_of(behave: Callable[[], object] = signal.pause) -> Iterator[tuple[Caller, int]]:
    """A child process that has connected to us, as its caller."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind("")  # the kernel chooses an abstract name
    listener.listen()

    def child() -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.connect(listener.getsockname())
        behave()

    with listener, pids.sleeping_child(child) as pid:
        sock, _ = listener.accept()
        with sock:
            caller = identify(sock)
        try:
            yield caller, pid
        finally:
            caller.close()


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
    [line] = lines.of("attestor broke")
    assert line["exc_info"]


async def test_notes_reach_the_operator(me: Caller) -> None:
    async def find(_workload: WorkloadRef) -> Findings:
        return Findings(notes=("not readable",))

    found = await attested(WorkloadAttestor([FakeAttestor(find)], Lines().log), me)
    assert found.notes == ("not readable",)


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
    alive = iter([True, True, False])
    monkeypatch.setattr(ProcessHandle, "is_alive", lambda _self: next(alive))
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


async def test_close_closes_them_all() -> None:
    attestors = [FakeAttestor(), OtherAttestor()]
    await WorkloadAttestor(attestors, Lines().log).close()
    assert all(attestor.closed for attestor in attestors)


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


async def test_nor_may_a_known_one_change_its_program_though_nobody_is_asked_again() -> None:
    go_read, go = os.pipe()
    gone, gone_write = os.pipe()

    def exec_when_told() -> None:
        os.read(go_read, 1)
        os.execv(sys.executable, [sys.executable, "-c", "import signal; signal.pause()"])  # noqa: S606

    with caller_of(exec_when_told) as (caller, _pid):
        os.close(gone_write)
        lasting, asked = counting()
        attestor = WorkloadAttestor([lasting], Lines().log)
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
    lasting, asked = counting()
    attestor = WorkloadAttestor([lasting], Lines().log)
    await attested(attestor, me)
    monkeypatch.setattr(
        attestation_module,
        "read_fingerprint",
        lambda view: read_fingerprint(view)._replace(ids=(b"4711", b"4711", b"")),
    )
    for _ in range(2):
        with pytest.raises(PeerError, match="changed its user or group after it connected"):
            await attested(attestor, me)
    assert len(asked) == 1


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


class LastingAttestor(FakeAttestor):
    reuse_seconds = 60.0


def counting() -> tuple[LastingAttestor, list[int]]:
    asked: list[int] = []

    async def find(workload: WorkloadRef) -> Findings:
        asked.append(workload.pid)
        return Findings(frozenset({ONE}))

    return LastingAttestor(find), asked


async def test_of_an_unchanged_process_an_attestor_may_be_asked_once(me: Caller) -> None:
    lasting, asked = counting()
    attestor = WorkloadAttestor([lasting], Lines().log)
    for _ in range(3):
        assert (await attested(attestor, me)).selectors == {ONE}
    assert len(asked) == 1
    await attested(attestor, replace(me))
    assert len(asked) == 2, "another connection has a memory of its own"


async def test_of_a_changed_one_it_is_asked_again(
    me: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    lasting, asked = counting()
    attestor = WorkloadAttestor([lasting], Lines().log)
    await attested(attestor, me)
    monkeypatch.setattr(
        attestation_module,
        "read_fingerprint",
        lambda view: read_fingerprint(view)._replace(cgroup=b"0::/elsewhere"),
    )
    await attested(attestor, me)
    assert len(asked) == 2


async def test_what_a_refused_attestation_found_is_not_remembered(me: Caller) -> None:
    lasting, asked = counting()
    attestor = WorkloadAttestor([lasting], Lines().log)
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


def test_a_selector_of_the_program_is_a_selector() -> None:
    with pytest.raises(ValueError, match="name them in both"):
        Findings(frozenset({ONE}), program=frozenset({TWO}))
