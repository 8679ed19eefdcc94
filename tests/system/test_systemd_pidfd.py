"""A systemd that accepts pidfds, of a newer Debian. As root: `make test-system`."""

from __future__ import annotations

import asyncio
import os

import pytest

from attestors.api import AttestorContext
from attestors.systemd import SystemdAttestor, SystemdOptions
from tests.support.machine import Machine, debian
from tests.support.workload import Workload

pytestmark = pytest.mark.system


async def test_new_systemd_is_asked_by_pidfd() -> None:
    """The agent is outside of its PID namespace, where the PID names another process."""
    with Machine(debian("trixie")) as machine:
        machine.run("systemd-run", "--unit=warehouse", "--slice=shop.slice", "sleep", "infinity")
        [pid] = machine.processes_of("warehouse.service")
        attestor = SystemdAttestor(SystemdOptions(bus=machine.bus), AttestorContext())
        pidfd = os.pidfd_open(pid)
        try:
            process = Workload(b"", pid=pid, pidfd=pidfd)
            answers = await asyncio.gather(*(attestor.attest(process) for _ in range(200)))
        finally:
            os.close(pidfd)
            await attestor.close()
    [findings] = set(answers)
    values = {each.value for each in findings.selectors}
    assert {"id:warehouse.service", "slice:shop.slice"} < values
