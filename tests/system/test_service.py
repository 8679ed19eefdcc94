"""vouchd as a service of a real systemd, in one container, from its first start to its last stop.

As root: `make test-system`.
"""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.service import CONFIG, ENTRIES, SETTINGS, SOCKET, UNIT, Service

pytestmark = pytest.mark.system

CLIENTS = 50
MAX_EXPOSURE = 2.5
# linux/capability.h
CAP_DAC_READ_SEARCH, CAP_SYS_PTRACE = 2, 19
THREE = """
entries:
  - {spiffe_id: /user/one, selectors: [unix:uid:1001]}
  - {spiffe_id: /user/two, selectors: [unix:uid:1002]}
  - {spiffe_id: /shop, selectors: [unix:uid:1003, systemd:id:shop.service]}
"""


@pytest.fixture(scope="module")
def booted() -> Iterator[Service]:
    with Service() as service:
        yield service


@pytest.fixture
def service(booted: Service) -> Service:
    """The service, enabled and started, with three entries in force."""
    booted.write(CONFIG, SETTINGS)
    booted.write(ENTRIES, THREE)
    booted.run("systemctl", "enable", "--now", UNIT)
    hang_up(booted)
    return booted


def restart(service: Service, drop_in: str) -> None:
    service.drop_in(drop_in)
    service.run("systemctl", "restart", UNIT)


def hang_up(service: Service) -> int:
    """Reload the service by SIGHUP, and wait until systemd has its READY notification."""
    service.run("systemd-analyze", "log-level", "debug")
    mark = service.journal.mark()
    os.kill(service.pid, signal.SIGHUP)
    service.journal.wait(f"{UNIT}: Changed running -> reload", mark)
    service.journal.wait(f"{UNIT}: Changed reload -> running", mark)
    service.run("systemd-analyze", "log-level", "info")
    return mark


def selectors_of_a_private_program(service: Service) -> tuple[list[str], str]:
    """The selectors and notes of a process whose program only its user can reach and read."""
    program = "/home/three/bin/program"
    service.run("sh", "-c", f"mkdir -p /home/three/bin; cp --update /bin/sleep {program}")
    service.run("chown", "-R", "1003", "/home/three")
    service.run("chmod", "700", "/home/three")
    service.run("chmod", "711", program)
    unit = ["systemd-run", "--quiet", "--collect", "--unit=shop", "--uid=1003", program]
    service.run(*unit, "infinity")
    pid = service.run("systemctl", "show", "--value", "--property=MainPID", "shop").strip()
    admin = ["--admin-socket", "/run/vouchd/admin.sock", "--output", "json"]
    explained = json.loads(service.run("vouchd", "explain", pid, *admin))
    service.run("systemctl", "stop", "shop")
    found = [each for report in explained["attestors"] for each in report["selectors"]]
    return found, str([report["notes"] for report in explained["attestors"]])


def test_the_enabled_service_serves_and_reports_its_status(service: Service) -> None:
    assert service.run("systemctl", "is-active", UNIT, "vouchd.socket").split() == ["active"] * 2
    assert service.show("StatusText") == "serving 3 entries to 0 callers"
    assert service.show("NRestarts") == "0"
    service.journal.wait("vouchd ready on unix:///run/vouchd/agent.sock", 0)
    own = (f"_SYSTEMD_UNIT={UNIT}", "VOUCHD_EVENT=serving")
    assert service.machine.run("journalctl", "--output=cat", *own).startswith(
        "serving  trust_domain="
    )


def test_each_user_gets_its_own_identity_and_a_user_without_an_entry_gets_none(
    service: Service,
) -> None:
    assert service.ask(1001) == ["/user/one"]
    assert service.ask(1002) == ["/user/two"]
    assert service.ask(1003) == []


def test_a_process_of_a_unit_matches_by_the_unit_name(service: Service) -> None:
    assert service.ask_in_unit("shop", 1003) == ["/shop"]
    assert service.ask(1003) == [], "the same user outside of the unit"


def test_systemd_analyze_rates_the_exposure_of_the_unit_as_low(service: Service) -> None:
    *_, verdict = service.run("systemd-analyze", "security", "--no-pager", UNIT).splitlines()
    assert float(verdict.split(":")[1].split()[0]) <= MAX_EXPOSURE


def test_the_service_has_two_capabilities_and_cannot_gain_more(service: Service) -> None:
    text = Path(f"/proc/{service.pid}/status").read_text()
    status = dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
    wanted = 1 << CAP_DAC_READ_SEARCH | 1 << CAP_SYS_PTRACE
    for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[kind], 16) == wanted, kind
    assert "0" not in status["Uid"].split()
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")


def test_with_its_capabilities_the_agent_digests_programs_that_other_users_cannot_read(
    service: Service,
) -> None:
    found, _notes = selectors_of_a_private_program(service)
    assert "unix:path:/home/three/bin/program" in found
    digest = service.run("sha256sum", "/bin/sleep").split()[0]
    assert f"unix:sha256:{digest}" in found


def test_without_capabilities_only_the_program_selectors_are_missing(service: Service) -> None:
    restart(service, "AmbientCapabilities=\nCapabilityBoundingSet=\n")
    assert service.ask(1001) == ["/user/one"]
    found, notes = selectors_of_a_private_program(service)
    assert {"unix:uid:1003", "systemd:id:shop.service", "systemd:slice:system.slice"} < set(found)
    assert not [each for each in found if each.startswith(("unix:path", "unix:sha256"))]
    assert "CAP_SYS_PTRACE" in notes
    restart(service, "")


def test_a_restart_fails_no_call_of_50_reconnecting_clients(service: Service) -> None:
    load = service.load(1001, CLIENTS)
    for _ in range(3):
        service.run("systemctl", "restart", UNIT)
        assert service.ask(1002) == ["/user/two"], "after the clients in the queue"
    report = json.loads(load.communicate()[0])
    assert report["failures"] == []
    assert report["fetched"] > CLIENTS, "clients fetched again after the restart"
    service.journal.wait("stopped", 0)


def test_a_reload_notifies_systemd_and_puts_the_edit_in_force(service: Service) -> None:
    service.write(ENTRIES, THREE.replace("/user/one", "/user/uno"))
    hang_up(service)
    assert service.ask(1001) == ["/user/uno"]


def test_edit_with_a_mistake_changes_nothing_and_is_in_systemctl_status(
    service: Service,
) -> None:
    service.write(ENTRIES, THREE.replace("spiffe_id: /user/one", "spiffe_ip: /user/one"))
    hang_up(service)
    assert service.ask(1001) == ["/user/one"]
    status = service.run("systemctl", "status", "--no-pager", "--full", UNIT)
    assert "entries not reloaded, the last good ones serve" in status
    assert f"{ENTRIES}:3:" in status
    service.write(ENTRIES, THREE)
    hang_up(service)
    assert "not reloaded" not in service.show("StatusText")


def test_a_killed_service_starts_again_and_serves_the_clients_that_waited(service: Service) -> None:
    mark = service.journal.mark()
    os.kill(service.pid, signal.SIGKILL)
    assert service.ask(1001) == ["/user/one"]
    service.journal.wait("Failed with result 'signal'", mark)
    service.journal.wait("vouchd ready on", mark)


def test_the_watchdog_ends_a_stuck_service_and_systemd_starts_it_again(service: Service) -> None:
    restart(service, "WatchdogSec=1\n")
    mark = service.journal.mark()
    os.kill(service.pid, signal.SIGSTOP)
    service.journal.wait("Watchdog timeout (limit 1s)!", mark)
    service.journal.wait("vouchd ready on", mark)
    assert service.ask(1001) == ["/user/one"]
    restart(service, "")


def test_a_key_in_the_credential_store_reaches_only_the_service(service: Service) -> None:
    service.write("/etc/credstore/vouchd.svid-cache-key", "secret")
    service.run("chmod", "600", "/etc/credstore/vouchd.svid-cache-key")
    service.run("systemctl", "restart", UNIT)
    environment = Path(f"/proc/{service.pid}/environ").read_bytes().split(b"\0")
    [place] = [each for each in environment if each.startswith(b"CREDENTIALS_DIRECTORY=")]
    key = Path(f"/proc/{service.pid}/root") / place.split(b"=")[1].decode()[1:]
    assert (key / "vouchd.svid-cache-key").read_text() == "secret"


def test_a_failed_start_shows_its_reason_in_the_status_and_keeps_the_socket(
    service: Service,
) -> None:
    service.write(CONFIG, "trust_domain: example.org\nentry: []\n")
    mark = service.journal.mark()
    service.run("sh", "-c", f"! systemctl restart {UNIT}")
    assert f"failed: {CONFIG}:2:1:" in service.show("StatusText")
    service.journal.wait(f"{CONFIG}:2:1:", mark)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as waiting:
        waiting.connect(f"/proc/{service.machine.init}/root{SOCKET}")
        service.journal.wait("restart counter is at 3", mark)
        assert service.run("systemctl", "is-active", "vouchd.socket") == "active\n"
    service.run("systemctl", "stop", UNIT)  # ends the attempts with the wrong configuration


def test_a_stop_removes_the_socket_and_the_journal_holds_no_defect(service: Service) -> None:
    pid = service.pid
    service.run("systemctl", "stop", "vouchd.socket", UNIT)
    assert (service.show("Result"), service.show("ExecMainStatus")) == ("success", "0")
    assert not Path(f"/proc/{service.machine.init}/root{SOCKET}").exists()
    assert not Path(f"/proc/{pid}").exists()
    for sign in ("Traceback", "defect", "Unknown key", "attestor failed", "internal error"):
        assert sign not in service.journal.text
