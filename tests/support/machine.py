"""Machines that run systemd: a root file system under a layer of the test's own (needs root)."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tests.support.agent import PATIENCE_SECONDS, REPOSITORY
from tests.support.ready import Ready

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_BUS = "run/dbus/system_bus_socket"
_BOOTS = ("systemd", "systemd-sysv", "dbus")
CACHE = Path("/var/cache/vouchd-tests")
"""What is made once and kept between runs."""


def _binds() -> list[str]:
    """What may lie on another file system than the root, or below the machine's own /tmp."""
    return [
        f"--bind-ro={path}"
        for path in dict.fromkeys((str(REPOSITORY), sys.prefix, sys.base_prefix))
        if not path.startswith("/usr")
    ]


def debian(release: str, *packages: str) -> Path:
    """The root file system of a Debian release, made when it is first needed and then kept.

    It has systemd, and further packages that are named.
    """
    return _bootstrapped("-".join((release, *packages)), release, *_BOOTS, *packages)


def bare_debian(release: str) -> Path:
    """The same with the least that a Debian has, as an image of it."""
    return _bootstrapped(f"{release}-bare", release)


def _bootstrapped(name: str, release: str, *packages: str) -> Path:
    root = CACHE / name
    if not root.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".{release}-", dir=CACHE))
        fresh.chmod(0o755)
        include = [f"--include={','.join(packages)}"] if packages else []
        command = ["debootstrap", "--variant=minbase", *include, release, str(fresh)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        fresh.rename(root)
    return root


class Machine:
    """Boots systemd in a container of systemd-nspawn. A context manager: it owns what it makes.

    Without a root file system of its own it has the files of this host, and what `binds` names at
    other paths too. One at a time: they share a cgroup.
    """

    def __init__(self, files: Path | None = None, binds: Mapping[Path, str] | None = None) -> None:
        self._files = files
        self._binds = [f"--bind-ro={path}:{inside}" for path, inside in (binds or {}).items()]

    def __enter__(self) -> Self:
        with ExitStack() as held:
            directory = Path(tempfile.mkdtemp(prefix="vouchd-nspawn-", dir="/var/tmp"))
            held.callback(shutil.rmtree, directory)
            root = self._layer(directory)
            # Whoever was killed in there lets go of it a moment later.
            held.callback(_unmount, root)
            with Ready(directory) as ready:
                process = self._boot(root, directory / "log", ready.environment)
                held.callback(_end, process)
                try:
                    said = ready.wait(process)
                except AssertionError as error:
                    log = (directory / "log").read_text()
                    raise AssertionError(f"systemd-nspawn: {error}: {log}") from error
            self.init = int(said["X_NSPAWN_LEADER_PID"])
            self._held = held.pop_all()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._held.close()

    @property
    def bus(self) -> str:
        """The address of its system bus, from outside."""
        return f"unix:path=/proc/{self.init}/root/{_BUS}"

    def processes_of(self, unit: str) -> list[int]:
        """The processes of a unit, by their PIDs outside."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if f"/{unit}\n" in (process / "cgroup").read_text():
                    found.append(int(process.name))
        return found

    def run(self, *command: str) -> str:
        """What a command prints inside."""
        done = subprocess.run(self.inside(command), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout

    def start(self, *command: str) -> subprocess.Popen[str]:
        """A command that goes on inside. Whoever starts it waits for it, or kills it."""
        pipe, tied = subprocess.PIPE, ["setpriv", "--pdeathsig", "KILL", "--", *command]
        return subprocess.Popen(self.inside(tied), text=True, stdin=pipe, stdout=pipe)

    def inside(self, command: Sequence[str]) -> list[str]:
        """A command, as this host has to start it."""
        spaces = ["-m", "-p", "-i", "-u", "-C"]
        return ["nsenter", f"--target={self.init}", *spaces, "--", *command]

    def _layer(self, directory: Path) -> Path:
        for name in ("root", "upper", "work"):
            (directory / name).mkdir()
        below = f"lowerdir={self._files or '/'}"
        layers = f"{below},upperdir={directory}/upper,workdir={directory}/work"
        root = directory / "root"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", layers, root], check=True)
        return root

    def _boot(self, root: Path, log: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
        with log.open("wb") as output:
            return subprocess.Popen(
                [
                    "systemd-nspawn", "--quiet", "--register=no", "--keep-unit",
                    "--link-journal=no", "--console=pipe", "--notify-ready=yes",
                    f"--directory={root}", *([] if self._files else _binds()), *self._binds,
                    "--boot", "systemd.unit=basic.target",
                ],
                env={**environment, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )  # fmt: skip


def _unmount(place: Path) -> None:
    subprocess.run(["umount", "--lazy", place], check=True)


def _end(nspawn: subprocess.Popen[bytes]) -> None:
    """With the first process the kernel ends all others of its PID namespace."""
    children = Path(f"/proc/{nspawn.pid}/task/{nspawn.pid}/children").read_text().split()
    for first in children:
        os.kill(int(first), signal.SIGKILL)
    if not children:
        nspawn.kill()
    nspawn.wait(PATIENCE_SECONDS)
