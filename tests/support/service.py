"""vouchd as a service of a real systemd, in a machine of systemd-nspawn (needs root)."""

from __future__ import annotations

import json
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tests.support import secrecy
from tests.support.agent import REPOSITORY, SAFETY_SECONDS, TRUST_DOMAIN
from tests.support.machine import Machine
from tests.support.package import clean_debian, install

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Sequence

UNIT = "vouchd.service"
USERS = (1001, 1002, 1003)
SOCKET = "/run/vouchd/agent.sock"
ENTRIES = "/etc/vouchd/entries.d/entries.yaml"
CONFIG = "/etc/vouchd/agent.yaml"
SETTINGS = f"""
trust_domain: {TRUST_DOMAIN}
admin_socket_path: /run/vouchd/admin.sock
attestors: {{unix: {{}}, systemd: {{}}}}
"""
_FETCH = ["vouchd", "fetch", "x509", "--output=json"]
_PYTHON = "/usr/lib/vouchd/bin/python3"


class Service:
    """A clean Debian with the package installed and not enabled. A context manager."""

    def __enter__(self) -> Self:
        with ExitStack() as held:
            machine = Machine(clean_debian(), {REPOSITORY: "/opt/checkout"})
            self.machine = held.enter_context(machine)
            self.run = self.machine.run
            self._install()
            self.journal = held.enter_context(Journal(self.machine))
            self._held = held.pop_all()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._held.close()

    @property
    def pid(self) -> int:
        """The agent's PID on the host."""
        [pid] = self.machine.processes_of(UNIT)
        return pid

    def write(self, path: str, text: str) -> None:
        """Write a file in the machine, with its directory."""
        place = Path(f"/proc/{self.machine.init}/root{path}")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)

    def drop_in(self, text: str) -> None:
        """Write a drop-in of the unit; empty text removes its settings."""
        self.write(f"/run/systemd/system/{UNIT}.d/test.conf", f"[Service]\n{text}")
        self.run("systemctl", "daemon-reload")

    def show(self, name: str) -> str:
        """Return a property of the unit (systemctl(1))."""
        return self.run("systemctl", "show", "--value", f"--property={name}", UNIT).strip()

    def ask(self, uid: int) -> list[str]:
        """Return the SPIFFE ID paths of a user; an empty list for `no identity`."""
        try:
            return _paths(self.run(*self.as_user(uid, _FETCH)))
        except AssertionError as error:
            assert "no identity" in str(error), error
            return []

    def ask_in_unit(self, unit: str, uid: int) -> list[str]:
        """Return the SPIFFE ID paths of a user's process that is a transient unit."""
        options = [f"--unit={unit}", f"--uid={uid}"]
        begin = ["systemd-run", "--quiet", "--collect", "--pipe", "--wait", *options]
        return _paths(self.run(*begin, *_FETCH))

    def load(self, uid: int, clients: int) -> subprocess.Popen[str]:
        """Start a user's clients and wait until each was served once (tests.support.load)."""
        program = [_PYTHON, "-m", "tests.support.load", SOCKET, str(clients)]
        load = self.machine.start(*self.as_user(uid, program))
        assert load.stdout is not None
        assert json.loads(load.stdout.readline()) == {"clients": clients}
        return load

    def as_user(self, uid: int, command: Sequence[str]) -> list[str]:
        """Return the command line to run a command as a user, in the checkout."""
        become = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]
        return ["env", "--chdir=/opt/checkout", *become, *command]

    def _install(self) -> None:
        install(self.machine)
        for uid in USERS:
            self.run("useradd", f"--uid={uid}", "--no-create-home", f"user{uid}")
        self.write(CONFIG, SETTINGS)
        self.write(ENTRIES, "entries: []\n")
        self.run("vouchd", "check", "-c", CONFIG)


class Journal:
    """The unit's journal, with systemd's messages about the unit. Owns its reader."""

    def __init__(self, machine: Machine) -> None:
        follow = ("--follow", "--lines=all", "--output=cat")
        self._process = machine.start("journalctl", f"--unit={UNIT}", *follow)
        self._lines: list[str] = []
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._process.kill()
        self._reader.join(SAFETY_SECONDS)
        self._process.communicate(timeout=SAFETY_SECONDS)

    @property
    def text(self) -> str:
        """The journal so far."""
        with self._news:
            return "".join(self._lines)

    def mark(self) -> int:
        """Return the present position, for `wait`."""
        with self._news:
            return len(self._lines)

    def wait(self, text: str, since: int) -> str:
        """Wait for a line with this text after the position `since`, and return it.

        Raises:
            AssertionError: no such line within SAFETY_SECONDS.
        """

        def found() -> str | None:
            return next((line for line in self._lines[since:] if text in line), None)

        with self._news:
            self._news.wait_for(found, timeout=SAFETY_SECONDS)
            line = found()
            assert line is not None, f"the journal lacks {text!r}:\n{''.join(self._lines[since:])}"
            return line

    def _read(self) -> None:
        for line in self._process.stdout or ():
            secrecy.record(line)
            with self._news:
                self._lines.append(line)
                self._news.notify_all()


def _paths(output: str) -> list[str]:
    svids = json.loads(output)["svids"]
    return [each["spiffe_id"].removeprefix(f"spiffe://{TRUST_DOMAIN}") for each in svids]
