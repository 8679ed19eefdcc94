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
    """What the attestor says of a process that systemd starts with these options."""
    begin = ["systemd-run", "--quiet", "--pipe", "--wait", f"--working-directory={REPOSITORY}"]
    found: list[str] = json.loads(machine.run(*begin, *options, *ATTEST))
    return dict(value.split(":", 1) for value in found)


def test_a_service_has_its_unit_slice_and_invocation(machine: Machine) -> None:
    options = ("--unit=payments", "--slice=shop.slice")
    first, second = attested(machine, *options), attested(machine, *options)
    assert first["id"] == "payments.service"
    assert first["fragment_path"] == "/run/systemd/transient/payments.service"
    assert first["slice"] == "shop.slice"
    assert len(bytes.fromhex(first["invocation_id"])) == 16
    assert second["invocation_id"] != first["invocation_id"]
    assert {**second, "invocation_id": ""} == {**first, "invocation_id": ""}


def test_a_unit_file_on_disk_is_named(machine: Machine) -> None:
    unit = "/etc/systemd/system/web.service"
    start = f"{sys.executable} -m tests.support.attest_unit"
    text = (
        f"[Service]\\nType=oneshot\\nWorkingDirectory={REPOSITORY}\\n"
        f"ExecStart={start}\\nStandardOutput=file:/run/web.out\\n"
    )
    machine.run("sh", "-c", f"printf '{text}' > {unit}; systemctl daemon-reload")
    machine.run("systemctl", "start", "web.service")
    found: list[str] = json.loads(machine.run("cat", "/run/web.out"))
    assert f"fragment_path:{unit}" in found
    assert "id:web.service" in found
    assert "slice:system.slice" in found


def test_a_cgroup_of_its_own_making_does_not_change_its_unit(machine: Machine) -> None:
    forge = (
        "own=/sys/fs/cgroup$(cut -d: -f3 /proc/self/cgroup); mkdir -p $own/victim.service; "
        f"echo $$ > $own/victim.service/cgroup.procs; exec {' '.join(ATTEST)}"
    )
    begin = ["systemd-run", "--quiet", "--pipe", "--wait", f"--working-directory={REPOSITORY}"]
    options = ("--unit=attacker", "--property=Delegate=yes")
    found = json.loads(machine.run(*begin, *options, "sh", "-c", forge.replace("$", "$$")))
    assert "id:attacker.service" in found
    assert "id:victim.service" not in found


def test_a_process_in_no_unit_has_no_selectors(machine: Machine) -> None:
    found = machine.run("sh", "-c", f"cd {REPOSITORY}; {' '.join(ATTEST)}")
    assert json.loads(found) == []
