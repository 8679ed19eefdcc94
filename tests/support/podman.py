"""Root's Podman in a directory of the test's own, serving its API (needs root)."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from tests.support.agent import PATIENCE_SECONDS, REPOSITORY
from tests.support.asker import Asker
from tests.support.engine import IMAGE, image_tar, mounts


class Podman:
    """`podman system service`. It owns the process, the containers and the directory."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="vouchd-pm-", dir="/var/tmp"))
        self.socket = self.directory / "podman.sock"
        self._askers: list[Asker] = []
        # runc also runs where both versions of cgroups are mounted.
        self._podman = [
            "podman", f"--root={self.directory}/root", f"--runroot={self.directory}/run",
            "--cgroup-manager=cgroupfs", "--storage-driver=vfs", "--runtime=runc",
            "--events-backend=file",
        ]  # fmt: skip
        with (self.directory / "log").open("wb") as log:
            self._service = subprocess.Popen(
                [*self._podman, "system", "service", "--time=0", f"unix://{self.socket}"],
                stdin=subprocess.DEVNULL,
                stderr=log,
            )
        end = time.monotonic() + PATIENCE_SECONDS
        while not self.socket.exists():
            assert time.monotonic() < end, (self.directory / "log").read_text()
            time.sleep(0.05)  # noqa: TID251 - another program's start has no event to wait for
        self.podman("import", "-", IMAGE, stdin=image_tar())

    def podman(self, *arguments: str, stdin: bytes = b"") -> str:
        """Run the command; what it prints."""
        done = subprocess.run(
            [*self._podman, *arguments], input=stdin, capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode().strip()

    def run(self, name: str, agent: Path, *options: str) -> Asker:
        """A new container whose first process asks when told to."""
        # The limits that it would set are above what some machines allow.
        limits = ("--ulimit=nofile=1024:2048", "--ulimit=nproc=1000:2000")
        return self._ask(
            agent, "run", "--detach", "--network=none", f"--name={name}", *limits,
            f"--workdir={REPOSITORY}", *mounts(agent), *options, IMAGE,
        )  # fmt: skip

    def exec(self, name: str, agent: Path) -> Asker:
        """Another process in a container."""
        return self._ask(agent, "exec", "--detach", f"--workdir={REPOSITORY}", name)

    def close(self) -> None:
        """Remove everything."""
        for asker in self._askers:
            asker.close()
        self.podman("rm", "--force", "--all", "--time=0")
        self._service.terminate()
        self._service.wait(PATIENCE_SECONDS)
        for line in reversed(Path("/proc/self/mounts").read_text().splitlines()):
            if (target := line.split()[1]).startswith(str(self.directory)):
                subprocess.run(["umount", target], check=True)
        shutil.rmtree(self.directory)

    def _ask(self, agent: Path, *arguments: str) -> Asker:
        asker = Asker(agent, lambda command: self.podman(*arguments, *command))
        self._askers.append(asker)
        return asker
