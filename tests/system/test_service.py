"""vouchd as a service of a real systemd: one machine, and one life of the service from the first
start to the last stop. As root: `make test-system`.
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
    """Enabled, started, and with three entries in force."""
    booted.write(CONFIG, SETTINGS)
    booted.write(ENTRIES, THREE)
    booted.run("systemctl", "enable", "--now", UNIT)
    hang_up(booted)
    return booted


def restart(service: Service, drop_in: str) -> None:
    service.drop_in(drop_in)
    service.run("systemctl", "restart", UNIT)


def hang_up(service: Service) -> int:
    """Have it reload, by a signal only, and wait until systemd has heard the end of it."""
    service.run("systemd-analyze", "log-level", "debug")
    mark = service.journal.mark()
    os.kill(service.pid, signal.SIGHUP)
    service.journal.wait(f"{UNIT}: Changed running -> reload", mark)
    service.journal.wait(f"{UNIT}: Changed reload -> running", mark)
    service.run("systemd-analyze", "log-level", "info")
    return mark


def selectors_of_a_program_at_home(service: Service) -> tuple[list[str], str]:
    """Of a process whose program only its user may reach, and nobody else read; and the notes."""
    program = "/home/three/bin/program"
    service.run("sh", "-c", f"mkdir -p /home/three/bin; cp --update /bin/sleep {program}")
    service.run("chown", "-R", "1003", "/home/three")
    service.run("chmod", "700", "/home/three")
    service.run("chmod", "711", program)
    unit = ["systemd-run", "--quiet", "--collect", "--unit=shop", "--uid=1003", program]
    service.run(*unit, "infinity")
    pid = service.run("systemctl", "show", "--value", "--property=MainPID", "shop").strip()
    admin = ["--admin-socket", "/run/vouchd/admin.sock", "--output", "json"]
    said = json.loads(service.run("vouchd", "explain", pid, *admin))
    service.run("systemctl", "stop", "shop")
    found = [each for report in said["attestors"] for each in report["selectors"]]
    return found, str([report["notes"] for report in said["attestors"]])


def test_enabled_and_started_it_serves(service: Service) -> None:
    assert service.run("systemctl", "is-active", UNIT, "vouchd.socket").split() == ["active"] * 2
    assert service.show("StatusText") == "serving 3 entries to 0 callers"
    assert service.show("NRestarts") == "0"
    service.journal.wait("vouchd ready on unix:///run/vouchd/agent.sock", 0)
    own = (f"_SYSTEMD_UNIT={UNIT}", "VOUCHD_EVENT=serving")
    assert service.machine.run("journalctl", "--output=cat", *own).startswith(
        "serving  trust_domain="
    )


def test_two_users_get_their_own_identities_and_a_third_none(service: Service) -> None:
    assert service.ask(1001) == ["/user/one"]
    assert service.ask(1002) == ["/user/two"]
    assert service.ask(1003) == []


def test_a_unit_is_known_by_its_name(service: Service) -> None:
    assert service.ask_in_unit("shop", 1003) == ["/shop"]
    assert service.ask(1003) == [], "the same user outside of the unit"


def test_its_exposure_is_small(service: Service) -> None:
    *_, verdict = service.run("systemd-analyze", "security", "--no-pager", UNIT).splitlines()
    assert float(verdict.split(":")[1].split()[0]) <= MAX_EXPOSURE


def test_it_has_two_capabilities_and_no_way_to_more(service: Service) -> None:
    text = Path(f"/proc/{service.pid}/status").read_text()
    status = dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
    wanted = 1 << CAP_DAC_READ_SEARCH | 1 << CAP_SYS_PTRACE
    for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[kind], 16) == wanted, kind
    assert "0" not in status["Uid"].split()
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")


def test_with_them_it_finds_and_digests_programs_that_others_may_not_read(
    service: Service,
) -> None:
    found, _notes = selectors_of_a_program_at_home(service)
    assert "unix:path:/home/three/bin/program" in found
    digest = service.run("sha256sum", "/bin/sleep").split()[0]
    assert f"unix:sha256:{digest}" in found


def test_without_any_capability_all_but_the_program_is_known(service: Service) -> None:
    restart(service, "AmbientCapabilities=\nCapabilityBoundingSet=\n")
    assert service.ask(1001) == ["/user/one"]
    found, notes = selectors_of_a_program_at_home(service)
    assert {"unix:uid:1003", "systemd:id:shop.service", "systemd:slice:system.slice"} < set(found)
    assert not [each for each in found if each.startswith(("unix:path", "unix:sha256"))]
    assert "CAP_SYS_PTRACE" in notes
    restart(service, "")


def test_a_restart_fails_none_of_50_clients_that_come_and_go(service: Service) -> None:
    load = service.load(1001, CLIENTS)
    for _ in range(3):
        service.run("systemctl", "restart", UNIT)
        assert service.ask(1002) == ["/user/two"], "behind those in the queue"
    report = json.loads(load.communicate()[0])
    assert report["failures"] == []
    assert report["fetched"] > CLIENTS, "they went on"
    service.journal.wait("stopped", 0)


def test_a_reload_is_told_to_systemd_and_takes_the_edit_up(service: Service) -> None:
    service.write(ENTRIES, THREE.replace("/user/one", "/user/uno"))
    hang_up(service)
    assert service.ask(1001) == ["/user/uno"]


def test_an_edit_with_a_mistake_changes_nothing_and_status_says_so(service: Service) -> None:
    service.write(ENTRIES, THREE.replace("spiffe_id: /user/one", "spiffe_ip: /user/one"))
    hang_up(service)
    assert service.ask(1001) == ["/user/one"]
    status = service.run("systemctl", "status", "--no-pager", "--full", UNIT)
    assert "entries not reloaded, the last good ones serve" in status
    assert f"{ENTRIES}:3:" in status
    service.write(ENTRIES, THREE)
    hang_up(service)
    assert "not reloaded" not in service.show("StatusText")


def test_killed_it_is_started_again_and_who_comes_meanwhile_is_served(service: Service) -> None:
    mark = service.journal.mark()
    os.kill(service.pid, signal.SIGKILL)
    assert service.ask(1001) == ["/user/one"]
    service.journal.wait("Failed with result 'signal'", mark)
    service.journal.wait("vouchd ready on", mark)


def test_stuck_it_is_ended_by_the_watchdog_and_started_again(service: Service) -> None:
    restart(service, "WatchdogSec=1\n")
    mark = service.journal.mark()
    os.kill(service.pid, signal.SIGSTOP)
    service.journal.wait("Watchdog timeout (limit 1s)!", mark)
    service.journal.wait("vouchd ready on", mark)
    assert service.ask(1001) == ["/user/one"]
    restart(service, "")


def test_a_key_in_the_credential_store_reaches_it_alone(service: Service) -> None:
    service.write("/etc/credstore/vouchd.svid-cache-key", "secret")
    service.run("chmod", "600", "/etc/credstore/vouchd.svid-cache-key")
    service.run("systemctl", "restart", UNIT)
    environment = Path(f"/proc/{service.pid}/environ").read_bytes().split(b"\0")
    [place] = [each for each in environment if each.startswith(b"CREDENTIALS_DIRECTORY=")]
    key = Path(f"/proc/{service.pid}/root") / place.split(b"=")[1].decode()[1:]
    assert (key / "vouchd.svid-cache-key").read_text() == "secret"


def test_a_start_that_fails_says_why_in_status_and_the_socket_stays(service: Service) -> None:
    service.write(CONFIG, "trust_domain: example.org\nentry: []\n")
    mark = service.journal.mark()
    service.run("sh", "-c", f"! systemctl restart {UNIT}")
    assert f"failed: {CONFIG}:2:1:" in service.show("StatusText")
    service.journal.wait(f"{CONFIG}:2:1:", mark)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as waiting:
        waiting.connect(f"/proc/{service.machine.init}/root{SOCKET}")
        service.journal.wait("restart counter is at 3", mark)
        assert service.run("systemctl", "is-active", "vouchd.socket") == "active\n"


def test_stopped_it_leaves_no_socket_and_the_journal_no_surprise(service: Service) -> None:
    pid = service.pid
    service.run("systemctl", "stop", "vouchd.socket", UNIT)
    assert (service.show("Result"), service.show("ExecMainStatus")) == ("success", "0")
    assert not Path(f"/proc/{service.machine.init}/root{SOCKET}").exists()
    assert not Path(f"/proc/{pid}").exists()
    for sign in ("Traceback", "defect", "Unknown key", "attestor failed", "internal error"):
        assert sign not in service.journal.text
