"""A process that changes during its attestation gets nothing; findings are used again only for the
process, program and credentials that they describe."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.attestation.attestor import Evidence, WorkloadAttestor
from agent.errors import NoIdentityError, PeerError, PeerGoneError
from agent.kernel.caller import Caller, Proof
from agent.kernel.fingerprint import Fingerprint, ProgramPin, read_fingerprint
from agent.kernel.inspect import process_by_pid
from agent.kernel.process import ProcessHandle, ProcessView
from attestors.api import AttestorError, Findings, Selector, WorkloadRef
from tests.support.attestation import ONE, attest
from tests.support.fakes import FakeAttestor, FakeLog

OF_USER, OF_PROGRAM = Selector("fake", "user"), Selector("fake", "program")


class Lasting(FakeAttestor):
    """Its findings last, for every connection of the process."""

    reuse_seconds = 60.0
    reuse_across_connections = True


class LastingForOneConnection(Lasting):
    reuse_across_connections = False


class World:
    """One attestor that records which processes it was called for, and readers that may lie."""

    def __init__(
        self,
        kind: type[FakeAttestor] = Lasting,
        find: Callable[[], Findings] = lambda: Findings(frozenset({ONE})),
    ) -> None:
        self.asked: list[int] = []
        self.changes: dict[str, Any] = {}
        """The fields in which each fingerprint differs from the real one."""
        self.executable: str | None = "/usr/bin/payments"
        self.user_namespace = str(Path("/proc/self/ns/user").readlink())
        self.pin: Callable[[ProcessView], ProgramPin] = ProgramPin
        self._find = find
        self.attestor = WorkloadAttestor(
            [kind(self._ask)],
            FakeLog().log,
            evidence=Evidence(
                fingerprint=lambda view: read_fingerprint(view)._replace(**self.changes),
                pin=self._pin,
                executable=lambda _view: self.executable,
                own_user_namespace=lambda: self.user_namespace,
            ),
        )

    def _pin(self, view: ProcessView) -> ProgramPin:
        return self.pin(view)

    async def _ask(self, workload: WorkloadRef) -> Findings:
        self.asked.append(workload.pid)
        return self._find()


# --- the process stays the same ------------------------------------------------------------------


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
async def test_any_change_during_an_attestation_fails_it(
    me: Caller, change: dict[str, Any]
) -> None:
    world = World()

    def find() -> Findings:
        world.changes = change
        return Findings(frozenset({ONE}))

    world._find = find
    with pytest.raises(PeerError, match="changed its program or user while it was attested"):
        await attest(world.attestor, me)
    assert world.attestor.latest(me) is None


class Mortal(ProcessHandle):
    """The handle of this process, which is dead when the test says so."""

    is_dead = False

    def is_alive(self) -> bool:
        return not self.is_dead and super().is_alive()


async def test_pidfd_is_polled_after_the_last_read(me: Caller) -> None:
    handle = Mortal(os.pidfd_open(os.getpid()))

    class LastRead(ProgramPin):
        def changed(self) -> bool:
            handle.is_dead = True
            return super().changed()

    world = World()
    world.pin = LastRead
    with (
        closing(replace(me, process=handle)) as dying,
        pytest.raises(PeerGoneError, match="while it was attested"),
    ):
        await attest(world.attestor, dying)
    assert world.asked


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda now: {"uid": now.uid + 1}, "changed its user or group"),
        (lambda now: {"gid": now.gid + 1}, "changed its user or group"),
        (lambda now: {"groups": (*now.groups, 4242)}, "supplementary groups"),
    ],
)
async def test_process_with_other_credentials_than_at_connect_is_refused(
    me: Caller, change: Callable[[Any], dict[str, Any]], reason: str
) -> None:
    world = World()
    other = replace(me, credentials=replace(me.credentials, **change(me.credentials)))
    for _ in range(2):
        with pytest.raises(PeerError, match=reason):
            await attest(world.attestor, other)
    assert not world.asked


async def test_process_that_gained_a_group_is_refused(me: Caller) -> None:
    world = World()
    ids = [str(each).encode() for each in (me.credentials.uid, me.credentials.gid)]
    world.changes = {"ids": (*ids, b"4242")}
    with pytest.raises(PeerError, match="supplementary groups"):
        await attest(world.attestor, me)


# --- program selectors ---------------------------------------------------------------------------


def of_program() -> Findings:
    return Findings(frozenset({OF_USER, OF_PROGRAM}), program=frozenset({OF_PROGRAM}))


async def test_process_in_another_user_namespace_gets_no_program_selectors(me: Caller) -> None:
    world = World(find=of_program)
    assert (await attest(world.attestor, me)).program == {OF_PROGRAM}
    world.user_namespace = "user:[1]"
    attested = await attest(world.attestor, me)
    assert attested.selectors == {OF_USER}
    assert attested.program == frozenset()
    assert "user namespace of its own" in attested.notes[0]


class NoPin(ProgramPin):
    """The pin of a process whose address space the agent may not open."""

    def __init__(self, _process: ProcessView) -> None:
        self._descriptor = -1


async def test_process_whose_memory_cannot_be_pinned_gets_no_program_selectors(me: Caller) -> None:
    world = World(find=of_program)
    world.pin = NoPin
    assert (await attest(world.attestor, me)).selectors == {OF_USER}


async def test_attestation_without_a_pin_leaves_no_descriptor_open(me: Caller) -> None:
    """A process may exit after its directory is open; a fixture counts the descriptors."""

    def fail(_view: ProcessView) -> ProgramPin:
        raise PeerGoneError("the process is gone")

    world = World()
    world.pin = fail
    with pytest.raises(PeerGoneError):
        await attest(world.attestor, me)
    assert not world.asked


async def test_note_on_program_selectors_is_absent_where_there_were_none(me: Caller) -> None:
    world = World()
    world.user_namespace = "user:[1]"
    assert not (await attest(world.attestor, me)).notes


# --- findings that are used again ----------------------------------------------------------------


async def test_findings_last_for_all_connections_of_a_process(me: Caller) -> None:
    world = World()
    first, *others = [await attest(world.attestor, each) for each in (me, me, replace(me))]
    assert not first.reports[0].remembered
    assert all(each.reports[0].remembered for each in others)
    assert {each.selectors for each in (first, *others)} == {frozenset({ONE})}
    assert len(world.asked) == 1


async def test_findings_of_an_attestor_that_forbids_it_are_not_shared(me: Caller) -> None:
    """The engine's answer about a container may be another by the next connection."""
    world = World(LastingForOneConnection)
    connections = [me, replace(me)]
    for connection in (*connections, *connections):
        assert (await attest(world.attestor, connection)).selectors == {ONE}
    assert len(world.asked) == len(connections)
    await world.attestor.close()


async def test_findings_of_an_attestor_without_reuse_are_used_once(me: Caller) -> None:
    world = World(FakeAttestor)
    for _ in range(2):
        await attest(world.attestor, me)
    assert len(world.asked) == 2


async def test_findings_with_notes_are_not_shared(me: Caller) -> None:
    """After an operator removed the cause, a new connection shows the effect."""
    world = World(find=lambda: Findings(frozenset({ONE}), notes=("the user has no name",)))
    for connection in (me, me, replace(me)):
        await attest(world.attestor, connection)
    assert len(world.asked) == 2


async def test_failure_is_not_remembered(me: Caller) -> None:
    def fail() -> Findings:
        raise AttestorError("down")

    world = World(find=fail)
    for _ in range(2):
        assert (await attest(world.attestor, me)).failures
    assert len(world.asked) == 2


async def test_findings_of_a_failed_attestation_are_not_remembered(me: Caller) -> None:
    world = World()
    with pytest.raises(NoIdentityError):
        async with world.attestor.attest(me):
            raise NoIdentityError("refused")
    await attest(world.attestor, me)
    assert len(world.asked) == 2


@pytest.mark.parametrize("reconnects", [False, True])
async def test_changed_process_is_attested_anew(me: Caller, *, reconnects: bool) -> None:
    world = World()
    await attest(world.attestor, me)
    world.changes = {"cgroup": b"0::/elsewhere"}
    await attest(world.attestor, replace(me) if reconnects else me)
    assert len(world.asked) == 2


async def test_renamed_executable_is_shown_with_its_new_path(me: Caller) -> None:
    world = World()
    await attest(world.attestor, me)
    world.executable = "/new/path"
    assert (await attest(world.attestor, replace(me))).executable == "/new/path"


async def test_process_that_the_kernel_did_not_pin_shares_no_findings(me: Caller) -> None:
    """A process read by PID, for an operator, is not pinned either."""
    world = World()
    with closing(process_by_pid(os.getpid())) as read_by_pid:
        for caller in (replace(me, proof=Proof.PIDFD_OPEN), me, read_by_pid):
            await attest(world.attestor, caller)
    assert len(world.asked) == 3


async def test_without_pidfs_connections_share_no_findings(me: Caller) -> None:
    """The PID may be another process's by the next connection."""
    world = World()
    for number in range(2):
        handle = ProcessHandle(os.pidfd_open(os.getpid()))
        handle.inode, handle.name = None, f"connection:{number}"
        with closing(replace(me, process=handle)) as connection:
            await attest(world.attestor, connection)
    assert len(world.asked) == 2


async def test_connection_of_another_user_does_not_use_the_findings_of_the_process(
    me: Caller,
) -> None:
    world = World()
    await attest(world.attestor, me)
    other = replace(me.credentials, uid=me.credentials.uid + 1)
    with pytest.raises(PeerError, match="changed its user or group after it connected"):
        await attest(world.attestor, replace(me, credentials=other))
    assert len(world.asked) == 1


async def test_process_that_changed_its_user_loses_its_remembered_findings(me: Caller) -> None:
    world = World()
    await attest(world.attestor, me)
    world.changes = {"ids": (b"4711", b"4711", b"")}
    for _ in range(2):
        with pytest.raises(PeerError, match="changed its user or group after it connected"):
            await attest(world.attestor, me)
    assert len(world.asked) == 1


def test_fingerprint_has_the_values_of_proc(me: Caller) -> None:
    with me.open_proc() as view:
        found: Fingerprint = read_fingerprint(view)
    assert found.cgroup == Path("/proc/self/cgroup").read_bytes()
    assert found.user_namespace == str(Path("/proc/self/ns/user").readlink())
    assert found.mount_namespace == str(Path("/proc/self/ns/mnt").readlink())
    assert found.cgroup_namespace == str(Path("/proc/self/ns/cgroup").readlink())
    assert found.executable is not None
    assert found.executable[1] == Path("/proc/self/exe").stat().st_ino
