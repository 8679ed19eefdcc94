"""Root's Podman with its API service, in a directory of the test (needs root)."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

from tests.support.agent import REPOSITORY, SAFETY_SECONDS
from tests.support.asker import Asker
from tests.support.engine import IMAGE, discard, image_tar, mounts
from tests.support.ready import Ready

# runc also runs where both versions of cgroups are mounted.
OPTIONS = (
    "--cgroup-manager=cgroupfs", "--storage-driver=vfs", "--runtime=runc", "--events-backend=file",
)  # fmt: skip


class Podman:
    """`podman system service`. Owns the process, the containers and the directory."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="vouchd-pm-", dir="/var/tmp"))
        self._askers: list[Asker] = []
        self.socket = self.directory / "podman.sock"
        self._podman, service = self._set_up()
        with (self.directory / "log").open("wb") as log, Ready(self.directory) as ready:
            self._service = subprocess.Popen(
                [*service, "system", "service", "--time=0", f"unix://{self.socket}"],
                env=ready.environment,
                stdin=subprocess.DEVNULL,
                stderr=log,
            )
            try:
                ready.wait(self._service)
                self.podman("import", "-", IMAGE, stdin=image_tar())
            except BaseException:
                self._end()
                raise

    def _set_up(self) -> tuple[list[str], list[str]]:
        """Return the beginnings of the client's and the service's command lines."""
        own = (f"--root={self.directory}/root", f"--runroot={self.directory}/run")
        command = ["podman", *own, *OPTIONS]
        return command, command

    def podman(self, *arguments: str, stdin: bytes = b"") -> str:
        """Run a Podman command and return its output."""
        done = subprocess.run(
            [*self._podman, *arguments], input=stdin, capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode().strip()

    def run(self, name: str, agent: Path, *options: str) -> Asker:
        """Start a container with an Asker as its first process."""
        # Podman's default limits are above the hard limits of some machines.
        limits = ("--ulimit=nofile=1024:2048", "--ulimit=nproc=1000:2000")
        return self._ask(
            agent, "run", "--detach", "--network=none", f"--name={name}", *limits,
            f"--workdir={REPOSITORY}", *self._mounts(agent), *options, IMAGE,
        )  # fmt: skip

    def exec(self, name: str, agent: Path) -> Asker:
        """Start an Asker as a further process of a container."""
        return self._ask(agent, "exec", "--detach", f"--workdir={REPOSITORY}", name)

    def close(self) -> None:
        """Remove the containers, stop the service and remove the directory."""
        try:
            # Before the Askers end: Podman fails to remove a container that is ending.
            self.podman("rm", "--force", "--all", "--time=0")
        finally:
            for asker in self._askers:
                asker.close()
            self._end()

    def _mounts(self, agent: Path) -> list[str]:
        return mounts(agent)

    def _end(self) -> None:
        self._service.terminate()
        self._service.wait(SAFETY_SECONDS)
        discard(self.directory)

    def _ask(self, agent: Path, *arguments: str) -> Asker:
        asker = Asker(agent, lambda command: self.podman(*arguments, *command))
        self._askers.append(asker)
        return asker
