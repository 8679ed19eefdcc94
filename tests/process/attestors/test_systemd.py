"""The systemd attestor on a real bus, with a service manager of the test."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager

import pytest
from dbus_fast import Message, Variant

from agent.kernel.caller import Caller, identify
from attestors.api import AttestorContext, AttestorError, Findings
from attestors.systemd import ANSWER_SECONDS, SystemdAttestor, SystemdOptions
from tests.support.findings import closing, values
from tests.support.system_bus import UNIT, SystemBus

pytestmark = pytest.mark.skipif(
    shutil.which("dbus-daemon") is None, reason="there is no dbus-daemon (package dbus)"
)


@pytest.fixture
async def bus() -> AsyncIterator[SystemBus]:
    """A manager that has this process in web.service."""
    async with SystemBus() as made:
        yield made


def attestor(
    address: str, answer_seconds: float = ANSWER_SECONDS
) -> AbstractAsyncContextManager[SystemdAttestor]:
    options = SystemdOptions(bus=address)
    return closing(SystemdAttestor(options, AttestorContext(), answer_seconds))


async def attest(made: SystemdAttestor, caller: Caller) -> Findings:
    with caller.open_proc() as process:
        return await made.attest(process)


EVERYTHING = {
    "id:web.service",
    "fragment_path:/etc/systemd/system/web.service",
    "slice:system.slice",
    f"invocation_id:{'ab' * 16}",
}


async def test_unit_is_asked_for_by_pidfd(bus: SystemBus, me: Caller) -> None:
    async with attestor(bus.address) as made:
        assert values(await attest(made, me)) == EVERYTHING
        assert values(await attest(made, me)) == EVERYTHING
    assert "GetUnitByPIDFD" in bus.asked
    assert "GetUnitByPID" not in bus.asked


async def test_older_systemd_is_asked_by_pid(bus: SystemBus, me: Caller) -> None:
    bus.methods.remove("GetUnitByPIDFD")
    async with attestor(bus.address) as made:
        assert values(await attest(made, me)) == EVERYTHING
        assert values(await attest(made, me)) == EVERYTHING
    assert bus.asked.count("GetUnitByPIDFD") == 1
    assert bus.asked.count("GetUnitByPID") == 2


async def test_process_that_exits_while_systemd_is_asked_by_pid_has_no_unit(bus: SystemBus) -> None:
    bus.methods.remove("GetUnitByPIDFD")
    address = f"\0vouchd-systemd-{os.getpid()}"
    script = f"import socket; s = socket.socket(1); s.connect({address!r}); s.recv(1)"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(address)
        listener.listen()
        child = subprocess.Popen([sys.executable, "-c", script])
        connection, _ = listener.accept()
        with connection:
            caller = identify(connection)
    bus.units[child.pid] = UNIT
    with caller.open_proc() as process:
        child.wait()
        async with attestor(bus.address) as made:
            with pytest.raises(AttestorError, match="exited"):
                await made.attest(process)
    caller.close()


async def test_process_in_no_unit_has_no_selectors(bus: SystemBus, me: Caller) -> None:
    bus.units.clear()
    async with attestor(bus.address) as made:
        assert await attest(made, me) == Findings()


async def test_property_that_a_unit_does_not_have_is_no_selector(
    bus: SystemBus, me: Caller
) -> None:
    bus.properties = {
        "Unit.Id": Variant("s", "-.slice"),
        "Unit.FragmentPath": Variant("s", ""),
        "Unit.InvocationID": Variant("ay", b""),
    }
    async with attestor(bus.address) as made:
        assert values(await attest(made, me)) == {"id:-.slice"}


async def test_refusal_of_systemd_is_a_failure_with_its_reason(bus: SystemBus, me: Caller) -> None:
    bus.error = "org.freedesktop.DBus.Error.AccessDenied"
    async with attestor(bus.address) as made:
        with pytest.raises(AttestorError, match="AccessDenied for a reason"):
            await attest(made, me)


async def test_bus_that_is_not_there_is_a_failure(me: Caller) -> None:
    async with attestor("unix:path=/nowhere") as made:
        with pytest.raises(AttestorError, match="cannot connect to the system bus"):
            await attest(made, me)


async def test_manager_that_does_not_answer_is_a_failure(bus: SystemBus, me: Caller) -> None:
    bus.methods.remove("GetUnitByPIDFD")
    bus._bus.remove_message_handler(bus._answer)
    bus._bus.add_message_handler(_silence)
    async with attestor(bus.address, answer_seconds=0.2) as made:
        with pytest.raises(AttestorError, match="does not answer"):
            await attest(made, me)


def _silence(message: Message) -> bool:
    for descriptor in message.unix_fds:
        os.close(descriptor)
    return True


async def test_200_callers_share_one_connection(bus: SystemBus, me: Caller) -> None:
    # By PID: the test's side of dbus-fast mixes up descriptors of messages that come together.
    bus.methods.remove("GetUnitByPIDFD")
    async with attestor(bus.address) as made, asyncio.TaskGroup() as tasks:
        asked = [tasks.create_task(attest(made, me)) for _ in range(200)]
        for each in asked:
            assert values(await each) == EVERYTHING
