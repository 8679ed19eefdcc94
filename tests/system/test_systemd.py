"""Units of a real systemd. As root: `make test-system`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

import pytest

from tests.support.agent import REPOSITORY
from tests.support.machine import Machine

pytestmark = pytest.mark.system

ATTEST = [sys.executable, "-m", "tests.support.attest_unit"]


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    with Machine() as booted:
        yield booted


def attested(machine: Machine, *options: str) -> dict[str, str]:
    """The selectors of a process that systemd starts with these options."""
    begin = ["systemd-run", "--quiet", "--pipe", "--wait", f"--working-directory={REPOSITORY}"]
    found: list[str] = json.loads(machine.run(*begin, *options, *ATTEST))
    return dict(value.split(":", 1) for value in found)


def test_service_has_its_unit_slice_and_invocation(machine: Machine) -> None:
    found = attested(machine, "--unit=payments", "--slice=shop.slice")
    assert found["id"] == "payments.service"
    assert found["fragment_path"] == "/run/systemd/transient/payments.service"
    assert found["slice"] == "shop.slice"
    assert len(bytes.fromhex(found["invocation_id"])) == 16


def test_service_has_the_path_of_its_unit_file(machine: Machine) -> None:
    unit = "/etc/systemd/system/web.service"
    start = f"{sys.executable} -m tests.support.attest_unit"
    text = (
        f"[Service]\\nType=oneshot\\nWorkingDirectory={REPOSITORY}\\n"
        f"ExecStart={start}\\nStandardOutput=truncate:/run/web.out\\n"
    )
    machine.run("sh", "-c", f"printf '{text}' > {unit}; systemctl daemon-reload")
    first, second = (
        json.loads(machine.run("sh", "-c", "systemctl start web.service; cat /run/web.out"))
        for _ in range(2)
    )
    common = {f"fragment_path:{unit}", "id:web.service", "slice:system.slice"}
    assert set(first) & set(second) == common
    assert len(first) == len(second) == len(common) + 1, "each start has its own invocation ID"


def test_cgroup_that_a_process_creates_does_not_change_its_unit(machine: Machine) -> None:
    forge = (
        "own=/sys/fs/cgroup$(cut -d: -f3 /proc/self/cgroup); mkdir -p $own/victim.service; "
        f"echo $$ > $own/victim.service/cgroup.procs; exec {' '.join(ATTEST)}"
    )
    begin = ["systemd-run", "--quiet", "--pipe", "--wait", f"--working-directory={REPOSITORY}"]
    options = ("--unit=attacker", "--property=Delegate=yes")
    found = json.loads(machine.run(*begin, *options, "sh", "-c", forge.replace("$", "$$")))
    assert "id:attacker.service" in found
    assert "id:victim.service" not in found


def test_process_in_no_unit_has_no_selectors(machine: Machine) -> None:
    found = machine.run("sh", "-c", f"cd {REPOSITORY}; {' '.join(ATTEST)}")
    assert json.loads(found) == []
