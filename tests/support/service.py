"""vouchd as a service of a real systemd, inside a machine of the test's (needs root)."""

from __future__ import annotations

import json
import sys
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tests.support import secrecy
from tests.support.agent import PATIENCE_SECONDS, REPOSITORY, TRUST_DOMAIN
from tests.support.machine import Machine

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
# With its bytecode, as an installed program has it.
_VOUCHD = """#!/bin/sh
unset PYTHONDONTWRITEBYTECODE
export PYTHONPATH=/opt/checkout PYTHONPYCACHEPREFIX=/opt/bytecode
exec /opt/venv/bin/python -m agent "$@"
"""
_ASK = ["/opt/venv/bin/python", "-m", "tests.support.ask", SOCKET]


class Service:
    """A machine with vouchd installed, not yet enabled. A context manager, which owns it."""

    def __enter__(self) -> Self:
        with ExitStack() as held:
            binds = {REPOSITORY: "/opt/checkout", Path(sys.prefix): "/opt/venv"}
            self.machine = held.enter_context(Machine(binds=binds))
            self.run = self.machine.run
            self._install()
            self.journal = held.enter_context(Journal(self.machine))
            self._held = held.pop_all()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._held.close()

    @property
    def pid(self) -> int:
        """Of the agent, outside."""
        [pid] = self.machine.processes_of(UNIT)
        return pid

    def write(self, path: str, text: str) -> None:
        """A file inside, its directory made if need be."""
        place = Path(f"/proc/{self.machine.init}/root{path}")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)

    def drop_in(self, text: str) -> None:
        """Settings of the unit besides those of its file; none if there is no text."""
        self.write(f"/run/systemd/system/{UNIT}.d/test.conf", f"[Service]\n{text}")
        self.run("systemctl", "daemon-reload")

    def show(self, name: str) -> str:
        """What systemd says of the unit."""
        return self.run("systemctl", "show", "--value", f"--property={name}", UNIT).strip()

    def ask(self, uid: int) -> list[str] | int:
        """The paths of a user's identities, or the status of the refusal."""
        answer = json.loads(self.run(*self.as_user(uid, _ASK)))
        return answer if isinstance(answer, int) else _paths(answer)

    def ask_in_unit(self, unit: str, uid: int) -> list[str]:
        """The same of a process that is a unit of systemd's."""
        options = [f"--unit={unit}", f"--uid={uid}", "--working-directory=/opt/checkout"]
        begin = ["systemd-run", "--quiet", "--collect", "--pipe", "--wait", *options]
        return _paths(json.loads(self.run(*begin, *_ASK)))

    def load(self, uid: int, clients: int) -> subprocess.Popen[str]:
        """A user's clients, all served once by now (tests.support.load)."""
        program = ["/opt/venv/bin/python", "-m", "tests.support.load", SOCKET, str(clients)]
        load = self.machine.start(*self.as_user(uid, program))
        assert load.stdout is not None
        assert json.loads(load.stdout.readline()) == {"clients": clients}
        return load

    def as_user(self, uid: int, command: Sequence[str]) -> list[str]:
        """A command that runs as a user, in the checkout."""
        become = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]
        return ["env", "--chdir=/opt/checkout", *become, *command]

    def _install(self) -> None:
        for directory in Path(sys.base_prefix).parents:  # it may be somebody's home
            self.run("chmod", "o+x", str(directory))
        self.run("useradd", "--system", "--user-group", "--no-create-home", "vouchd")
        self.write("/usr/bin/vouchd", _VOUCHD)
        self.run("chmod", "755", "/usr/bin/vouchd")
        for uid in USERS:
            self.run("useradd", f"--uid={uid}", "--no-create-home", f"user{uid}")
        for unit in (REPOSITORY / "deploy/systemd").iterdir():
            self.write(f"/etc/systemd/system/{unit.name}", unit.read_text())
        self.run("systemctl", "daemon-reload")
        self.write(CONFIG, SETTINGS)
        self.write(ENTRIES, "entries: []\n")
        self.run("vouchd", "check", "-c", CONFIG)


class Journal:
    """What the journal has of the unit, systemd's own words too. It owns what reads it."""

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
        self._reader.join(PATIENCE_SECONDS)
        self._process.communicate(timeout=PATIENCE_SECONDS)

    @property
    def text(self) -> str:
        """All of it, so far."""
        with self._news:
            return "".join(self._lines)

    def mark(self) -> int:
        """Now, for `wait`."""
        with self._news:
            return len(self._lines)

    def wait(self, text: str, since: int) -> str:
        """The first line with this text from then on.

        Raises:
            AssertionError: there is none, for too long.
        """

        def found() -> str | None:
            return next((line for line in self._lines[since:] if text in line), None)

        with self._news:
            self._news.wait_for(found, timeout=PATIENCE_SECONDS)
            line = found()
            assert line is not None, f"the journal lacks {text!r}:\n{''.join(self._lines[since:])}"
            return line

    def _read(self) -> None:
        for line in self._process.stdout or ():
            secrecy.hear(line)
            with self._news:
                self._lines.append(line)
                self._news.notify_all()


def _paths(ids: list[str]) -> list[str]:
    return [each.removeprefix(f"spiffe://{TRUST_DOMAIN}") for each in ids]
