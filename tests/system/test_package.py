"""The Debian package in a clean Debian: one machine, from the installation to the purge.

The tests run in this order on the same machine. As root: `make test-system`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from subprocess import Popen

import pytest

from tests.support.agent import REPOSITORY
from tests.support.machine import Machine
from tests.support.package import clean_debian, install

pytestmark = pytest.mark.system

ENTRY = """
entries:
  - spiffe_id: /payments/api
    selectors: [unix:user:payments]
"""
# The installer and the system write here about every package, also about purged ones.
JOURNALS = (
    "/etc/.pwd.lock", "/run/systemd/", "/var/cache/man/", "/var/lib/dpkg/", "/var/lib/systemd/",
    "/var/log/",
)  # fmt: skip
ASK_FISH = """
    source /usr/share/fish/vendor_completions.d/vouchd.fish
    complete --do-complete 'vouchd f'
"""
BACKUPS = {f"/etc/{name}-" for name in ("passwd", "group", "shadow", "gshadow", "subuid", "subgid")}


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """A machine with the user `payments`."""
    with Machine(clean_debian()) as booted:
        booted.run("useradd", "payments")
        yield booted


@pytest.fixture(scope="module")
def before(machine: Machine) -> set[str]:
    """All files before the installation, with owner and permissions."""
    return files(machine)


@pytest.fixture(scope="module")
def installed(machine: Machine, before: set[str]) -> Machine:
    assert before
    install(machine)
    return machine


def files(machine: Machine) -> set[str]:
    found = machine.run("find", "/", "/run", "-xdev", "-printf", "%p %M %U:%G\\n").splitlines()
    return {each for each in found if not each.startswith(JOURNALS)}


def ask(machine: Machine) -> str:
    """Return the response to `vouchd fetch x509` of the user `payments`."""
    return machine.run(
        "runuser", "-u", "payments", "--", "vouchd", "fetch", "x509", "--output=json"
    )


def state(machine: Machine, question: str) -> list[str]:
    units = "vouchd.socket vouchd.service"
    return machine.run("sh", "-c", f"systemctl {question} {units} || true").split()


def test_installed_package_starts_no_unit_and_has_a_valid_configuration(installed: Machine) -> None:
    assert state(installed, "is-active") == ["inactive", "inactive"]
    assert state(installed, "is-enabled") == ["disabled", "disabled"]
    checked = installed.run("vouchd", "check", "-c", "/etc/vouchd/agent.yaml")
    assert checked == "0 entries in 0 files are valid\n"
    assert installed.run("vouchd", "--version") == "vouchd, version 0.1.0\n"


def test_enabled_service_runs_and_issues_no_identity_without_an_entry(installed: Machine) -> None:
    installed.run("systemctl", "enable", "--now", "vouchd")
    assert state(installed, "is-active") == ["active", "active"]
    assert state(installed, "is-enabled") == ["enabled", "enabled"]
    with pytest.raises(AssertionError, match="no identity"):
        ask(installed)
    [pid] = installed.processes_of("vouchd.service")
    status = Path(f"/proc/{pid}/status").read_text()
    assert f"Uid:\t{installed.run('id', '-u', 'vouchd').strip()}\t" in status


def test_added_entry_gives_its_user_an_identity(installed: Machine) -> None:
    Path(f"/proc/{installed.init}/root/etc/vouchd/entries.d/payments.yaml").write_text(ENTRY)
    installed.run("systemctl", "restart", "vouchd")
    assert "spiffe://example.org/payments/api" in ask(installed)


def test_package_installs_the_manual_pages(installed: Machine) -> None:
    pages = "vouchd.1 vouchd-agent.yaml.5 vouchd-entries.yaml.5 vouchd-selectors.7"
    complaints = "LC_ALL=C.UTF-8 man --warnings $page 2>&1 > /dev/null"
    assert installed.run("sh", "-c", f"for page in {pages}; do {complaints}; done") == ""
    manual = installed.run("man", "vouchd")
    assert "vouchd fetch x509 [OPTIONS]" in manual
    assert "The exit code is 1 if the process gets no identity." in " ".join(manual.split())


def test_manual_pages_show_defaults_and_selectors(installed: Machine) -> None:
    manual = " ".join(installed.run("man", "vouchd-agent.yaml").split())
    assert "limits.connections" in manual
    assert "Default: 4000." in manual
    assert "unix:sha256:" in installed.run("man", "7", "vouchd-selectors")


def test_package_installs_the_documents(installed: Machine) -> None:
    folder = "/usr/share/doc/vouchd"
    brought = installed.run("find", folder, "-name", "*.md", "-printf", "%P\\n").split()
    ours = [REPOSITORY / "README.md", *(REPOSITORY / "docs").rglob("*.md")]
    assert set(brought) == {str(each.relative_to(REPOSITORY)) for each in ours}
    quickstart = (REPOSITORY / "docs/quickstart.md").read_text()
    assert installed.run("cat", f"{folder}/docs/quickstart.md") == quickstart


@pytest.mark.parametrize(
    ("shell", "begin"),
    [
        ("bash --norc", ". /usr/share/bash-completion/bash_completion"),
        ("zsh --no-rcs", "autoload -U compinit && compinit -D"),
        ("fish", "true"),
    ],
    ids=["bash", "zsh", "fish"],
)
def test_shell_completes_commands_and_options(installed: Machine, shell: str, begin: str) -> None:
    # Shells write into the home directory; the machine's /tmp is discarded with the machine.
    terminal = ["env", "HOME=/tmp", "TERM=xterm", "timeout", "30", "script", "--quiet"]
    with installed.start(*terminal, "--command", f"{shell} -i", "/dev/null") as process:
        type_in(process, f"{begin} && echo it is 'ready'\n", "it is ready")
        type_in(process, "vouchd f\tx\t--he\t\n", "Usage: vouchd fetch x509")
        process.kill()


def type_in(terminal: Popen[str], keys: str, expected: str) -> None:
    assert terminal.stdin is not None
    assert terminal.stdout is not None
    terminal.stdin.write(keys)
    terminal.stdin.flush()
    assert any(expected in line for line in terminal.stdout)


def test_fish_shows_the_description_of_a_completion(installed: Machine) -> None:
    output = installed.run("env", "HOME=/tmp", "fish", "--command", ASK_FISH)
    assert output.startswith("fetch\tFetch the SVIDs and bundles")


def test_upgrade_restarts_the_service_and_keeps_edited_files(installed: Machine) -> None:
    first = installed.run("systemctl", "show", "--property=MainPID", "vouchd")
    install(installed)
    assert state(installed, "is-active") == ["active", "active"]
    assert installed.run("systemctl", "show", "--property=MainPID", "vouchd") != first
    assert "spiffe://example.org/payments/api" in ask(installed)


def test_running_service_changes_no_installed_file(installed: Machine) -> None:
    """The package contains the compiled modules, so Python writes no `__pycache__`."""
    assert installed.run("dpkg", "--verify", "vouchd") == ""


def test_purge_removes_all_files_and_users(installed: Machine, before: set[str]) -> None:
    installed.run("sh", "-c", "systemctl start vouchd && rm /run/vouchd_*.deb")
    installed.run("dpkg", "--purge", "vouchd")
    left = {each for each in files(installed) - before if each.split()[0] not in BACKUPS}
    assert left == set()
    assert state(installed, "is-active") == ["inactive", "inactive"]
    assert "vouchd" not in installed.run("sh", "-c", "cat /etc/passwd /etc/group /etc/shadow")
