"""A Docker engine for the test, with containers that call the agent (needs root)."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
from contextlib import suppress
from pathlib import Path

from tests.support.agent import REPOSITORY, SAFETY_SECONDS
from tests.support.asker import Asker
from tests.support.ready import Ready

IMAGE = "vouchd-test:1"
# An absolute path: a developer may have a wrapper of the same name on the PATH.
_DOCKER = "/usr/bin/docker"


def image_tar() -> bytes:
    """Return a root file system with busybox; containers mount the host's /usr into it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in ("usr", "tmp", "etc", "proc", "sys", "dev", "run", "work"):
            directory = tarfile.TarInfo(name)
            directory.type, directory.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(directory)
        for name in ("bin", "sbin", "lib", "lib64"):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, f"usr/{name}"
            tar.addfile(link)
        tar.add("/usr/bin/busybox", arcname="busybox")
    return buffer.getvalue()


def mounts(directory: Path) -> list[str]:
    """Return the mounts for Python, the repository and the directory of the agent's socket."""
    shared = {REPOSITORY, Path(sys.prefix), Path(sys.base_prefix), directory}
    # A path below another mounted path needs no mount.
    shared = {each for each in shared if not each.is_relative_to("/usr")}
    tops = [
        each for each in shared if not any(each != o and each.is_relative_to(o) for o in shared)
    ]
    return [f"--volume={path}:{path}:ro" for path in (Path("/usr"), *sorted(tops))]


def discard(directory: Path) -> None:
    """Unmount everything below a directory and remove it."""
    unmount_below(directory)
    shutil.rmtree(directory)


def unmount_below(directory: Path) -> None:
    """Unmount everything below a directory."""
    for line in reversed(Path("/proc/self/mounts").read_text().splitlines()):
        if (target := line.split()[1]).startswith(str(directory)):
            subprocess.run(["umount", target], check=True)


class DockerEngine:
    """`dockerd` in its own directory. Owns the process, its containers and its directory."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="vouchd-dk-", dir="/var/tmp"))
        self.socket = self.directory / "docker.sock"
        self._askers: list[Asker] = []
        try:
            self.start()
            self.docker("import", "--message=vouchd", "-", IMAGE, stdin=image_tar())
        except BaseException:
            self._end()
            raise

    def start(self) -> None:
        """Start or restart the engine and wait until it is ready."""
        with (self.directory / "log").open("ab") as log, Ready(self.directory) as ready:
            self._process = subprocess.Popen(
                [
                    "/usr/sbin/dockerd",
                    f"--data-root={self.directory}/data",
                    f"--exec-root={self.directory}/exec",
                    f"--pidfile={self.directory}/pid",
                    f"--host=unix://{self.socket}",
                    "--bridge=none",
                    "--iptables=false",
                    "--ip6tables=false",
                    "--live-restore",
                    "--storage-driver=vfs",
                ],
                env=ready.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
            try:
                ready.wait(self._process)
            except AssertionError as error:
                raise AssertionError(f"dockerd: {error}: {self.log[-2000:]}") from error

    @property
    def log(self) -> str:
        """The engine's output so far."""
        return (self.directory / "log").read_text()

    def kill(self) -> None:
        """Kill the engine with SIGKILL; its containers continue to run."""
        containerd = self.directory / "exec/containerd/containerd.pid"
        self._process.kill()
        self._process.wait()
        # Kill its containerd too: the next engine would take an unreaped zombie for a live process.
        with suppress(ProcessLookupError):
            os.kill(int(containerd.read_text()), signal.SIGKILL)
        for pid_file in (containerd, self.directory / "pid"):
            pid_file.unlink()

    def docker(self, *arguments: str, stdin: bytes = b"") -> str:
        """Run the command-line client and return its output."""
        done = self._client(*arguments, stdin=stdin)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode().strip()

    def run(self, name: str, agent: Path, *options: str) -> Asker:
        """Start a container with an Asker as its first process."""
        return self._ask(
            agent, "run", "--detach", "--network=none", f"--name={name}",
            f"--workdir={REPOSITORY}", *mounts(agent), *options, IMAGE,
        )  # fmt: skip

    def exec(self, name: str, agent: Path, *options: str) -> Asker:
        """Start an Asker as a further process of a container."""
        return self._ask(
            agent, "exec", "--detach", f"--workdir={REPOSITORY}", *options, name
        )  # fmt: skip

    def pid(self, name: str) -> int:
        """Return the PID of the container's first process."""
        return int(self.docker("inspect", "--format={{.State.Pid}}", name))

    def remove_all(self) -> None:
        """Remove all containers; start the engine first if it does not run."""
        if self._process.poll() is not None:
            self.start()
        if found := self.docker("ps", "--all", "--quiet").split():
            self.docker("rm", "--force", *found)
        for asker in self._askers:
            asker.close()
        self._askers.clear()

    def close(self) -> None:
        """Stop the engine and remove its directory."""
        try:
            self.remove_all()
        finally:
            self._end()

    def _end(self) -> None:
        self._process.terminate()
        self._process.wait(SAFETY_SECONDS)
        discard(self.directory)

    def _ask(self, agent: Path, *arguments: str) -> Asker:
        asker = Asker(agent, lambda command: self.docker(*arguments, *command))
        self._askers.append(asker)
        return asker

    def _client(self, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [_DOCKER, f"--host=unix://{self.socket}", *arguments],
            input=stdin,
            capture_output=True,
            env={**os.environ, "DOCKER_CONFIG": str(self.directory)},
            check=False,
        )
