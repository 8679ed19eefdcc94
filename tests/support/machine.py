"""Machines that run systemd: a root file system below an overlay of the test (needs root)."""

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

from tests.support.agent import REPOSITORY, SAFETY_SECONDS
from tests.support.ready import Ready

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_BUS = "run/dbus/system_bus_socket"
_BOOTS = ("systemd", "systemd-sysv", "dbus")
CACHE = Path("/var/cache/vouchd-tests")
"""Root file systems, images and packages that are kept between runs."""


def _binds() -> list[str]:
    """Return mounts for paths on other file systems than the root, or below the machine's /tmp."""
    return [
        f"--bind-ro={path}"
        for path in dict.fromkeys((str(REPOSITORY), sys.prefix, sys.base_prefix))
        if not path.startswith("/usr")
    ]


def debian(release: str, *packages: str) -> Path:
    """Return the cached root file system of a Debian release with systemd and `packages`."""
    return _bootstrapped("-".join((release, *packages)), release, *_BOOTS, *packages)


def bare_debian(release: str) -> Path:
    """Return the cached minimal root file system of a Debian release, as of a container image."""
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
    """Boots systemd in a container of systemd-nspawn. A context manager.

    Machines share a cgroup, so only one can run at a time.

    Args:
        files: the root file system; None uses this host's.
        binds: read-only mounts, by path on the host.
    """

    def __init__(self, files: Path | None = None, binds: Mapping[Path, str] | None = None) -> None:
        self._files = files
        self._binds = [f"--bind-ro={path}:{inside}" for path, inside in (binds or {}).items()]

    def __enter__(self) -> Self:
        with ExitStack() as held:
            directory = Path(tempfile.mkdtemp(prefix="vouchd-nspawn-", dir="/var/tmp"))
            held.callback(shutil.rmtree, directory)
            root = self._layer(directory)
            # A lazy unmount: killed processes release the mount a moment later.
            held.callback(_unmount, root)
            with Ready(directory) as ready:
                process = self._boot(root, directory / "log", ready.environment)
                held.callback(_end, process)
                try:
                    fields = ready.wait(process)
                except AssertionError as error:
                    log = (directory / "log").read_text()
                    raise AssertionError(f"systemd-nspawn: {error}: {log}") from error
            self.init = int(fields["X_NSPAWN_LEADER_PID"])
            self._held = held.pop_all()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._held.close()

    @property
    def bus(self) -> str:
        """The address of the machine's system bus on the host."""
        return f"unix:path=/proc/{self.init}/root/{_BUS}"

    def processes_of(self, unit: str) -> list[int]:
        """Return the PIDs on the host of a unit's processes."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if f"/{unit}\n" in (process / "cgroup").read_text():
                    found.append(int(process.name))
        return found

    def run(self, *command: str) -> str:
        """Run a command in the machine and return its output."""
        done = subprocess.run(self.inside(command), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout

    def start(self, *command: str) -> subprocess.Popen[str]:
        """Start a command in the machine; the caller waits for the process or kills it."""
        pipe, bound = subprocess.PIPE, ["setpriv", "--pdeathsig", "KILL", "--", *command]
        return subprocess.Popen(self.inside(bound), text=True, stdin=pipe, stdout=pipe)

    def inside(self, command: Sequence[str]) -> list[str]:
        """Return the host's command line to run a command in the machine."""
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
    """Kill the machine's first process; the kernel kills the rest of its PID namespace."""
    children = Path(f"/proc/{nspawn.pid}/task/{nspawn.pid}/children").read_text().split()
    for first in children:
        os.kill(int(first), signal.SIGKILL)
    if not children:
        nspawn.kill()
    nspawn.wait(SAFETY_SECONDS)
