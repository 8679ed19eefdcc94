"""Machines that run systemd: a root file system under a layer of the test's own (needs root)."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Self

from tests.support.agent import PATIENCE_SECONDS, REPOSITORY

_BUS = "run/dbus/system_bus_socket"
_CACHE = Path("/var/cache/vouchd-tests")


def _binds() -> list[str]:
    """What may lie on another file system than the root, or below the machine's own /tmp."""
    return [
        f"--bind-ro={path}"
        for path in dict.fromkeys((str(REPOSITORY), sys.prefix, sys.base_prefix))
        if not path.startswith("/usr")
    ]


def debian(release: str) -> Path:
    """The root file system of a Debian release, made when it is first needed and then kept."""
    root = _CACHE / release
    if not root.exists():
        _CACHE.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f"{release}-", dir=_CACHE))
        fresh.chmod(0o755)
        include = "--include=systemd,systemd-sysv,dbus"
        command = ["debootstrap", "--variant=minbase", include, release, str(fresh)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        fresh.rename(root)
    return root


class Machine:
    """Boots systemd in a container of systemd-nspawn. It owns the container and its layer.

    Without a root file system of its own it has the files of this host. One at a time: they share
    a cgroup.
    """

    def __init__(self, files: Path | None = None) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="vouchd-nspawn-", dir="/var/tmp"))
        for name in ("root", "upper", "work"):
            (self._directory / name).mkdir()
        below = f"lowerdir={files or '/'}"
        layers = f"{below},upperdir={self._directory}/upper,workdir={self._directory}/work"
        self._root = self._directory / "root"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", layers, self._root], check=True)
        with (self._directory / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    "systemd-nspawn", "--quiet", "--register=no", "--keep-unit",
                    "--link-journal=no", "--console=pipe", f"--directory={self._root}",
                    *([] if files else _binds()), "--boot", "systemd.unit=basic.target",
                ],
                env={**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )  # fmt: skip
        self.init = self._wait_until_booted()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        # With the first process the kernel ends all others of its PID namespace.
        os.kill(self.init, signal.SIGKILL)
        self._process.wait(PATIENCE_SECONDS)
        # What the killed container held is let go a moment later.
        end = time.monotonic() + PATIENCE_SECONDS
        while subprocess.run(["umount", self._root], check=False, stderr=-3).returncode:
            assert time.monotonic() < end, f"{self._root} is busy"
            time.sleep(0.05)  # noqa: TID251 - the kernel has no event for this
        shutil.rmtree(self._directory)

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
        inside = ["nsenter", f"--target={self.init}", "-m", "-p", "-i", "-u", "-C", "--", *command]
        done = subprocess.run(inside, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout

    def _wait_until_booted(self) -> int:
        end = time.monotonic() + PATIENCE_SECONDS
        while not (init := self._first()) or not Path(f"/proc/{init}/root/{_BUS}").exists():
            assert time.monotonic() < end, (self._directory / "log").read_text()
            assert self._process.poll() is None, (self._directory / "log").read_text()
            time.sleep(0.05)  # noqa: TID251 - another program's start has no event to wait for
        return init

    def _first(self) -> int:
        """The container's first process; 0 if there is none yet."""
        path = f"/proc/{self._process.pid}/task/{self._process.pid}/children"
        children = Path(path).read_text().split()
        return int(children[0]) if children else 0
