"""The agent's image, built and run by the commands of docs/how-to/containers.md (needs root)."""

from __future__ import annotations

import ast
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

from tests.support import secrecy
from tests.support.agent import REPOSITORY, SAFETY_SECONDS
from tests.support.documents import blocks
from tests.support.engine import unmount_below
from tests.support.machine import CACHE, bare_debian

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

HOW_TO = REPOSITORY / "docs/how-to/containers.md"
IMAGE = "vouchd:0.1.0"
USER = 42001
"""The UID and GID of the host's user `vouchd`."""
CONFIG = """
trust_domain: example.org
data_dir: /var/lib/vouchd
socket_path: /run/vouchd/agent.sock
entries: [/etc/vouchd/entries.yaml]
log: {level: debug}
"""

_STORE = CACHE / "containers"
_BASE = "localhost/debian:bookworm"
# Podman keeps the layers of a build stage only while an image with a name refers to them.
_BUILD_STAGE = "localhost/vouchd-build"
_CONTAINER = "vouchd"
# pip reads $XDG/pip/pip.conf.
_XDG = "/etc/xdg"
# runc also runs where both versions of cgroups are mounted. The limits are set because Podman's
# defaults are above the hard limits of some machines.
_ENGINE = """
[containers]
default_ulimits = ["nofile=1024:2048", "nproc=1000:2000"]
log_driver = "k8s-file"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
"""
_STORAGE = f"""
[storage]
driver = "overlay"
graphroot = "{_STORE}/root"
runroot = "{_STORE}/run"
"""


def documented(beginning: str) -> list[str]:
    """Return the words of the how-to's command with this beginning."""
    commands = [each.text for block in blocks(HOW_TO) for each in block.commands]
    [command] = [each for each in commands if each.startswith(beginning)]
    return shlex.split(command.replace("\\\n", " "))


class Containers:
    """Root's Podman with the agent's image.

    The image store is kept between runs: only changed layers are built. Owns the containers, and a
    directory in place of the host's directories.
    """

    def __init__(self) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="vouchd-image-", dir="/var/tmp"))
        self._directory.chmod(0o755)
        self._environment = {
            **os.environ,
            "CONTAINERS_CONF": self._file("containers.conf", _ENGINE),
            "CONTAINERS_STORAGE_CONF": self._file("storage.conf", _STORAGE),
        }
        # Containers of an interrupted run.
        self._remove_all()
        self._have_base()
        self._build()

    @property
    def sockets(self) -> Path:
        """The host's directory with the agent's socket."""
        return self._directory / "run/vouchd"

    @contextmanager
    def running(self, entries: str, *, without: Sequence[str] = ()) -> Iterator[None]:
        """Run the agent by the how-to's command, without the options in `without`."""
        self._lay_out(entries)
        command = [self._here(word) for word in documented("podman run")]
        assert set(without) <= set(command)
        self._run([word for word in command if word not in without])
        try:
            self._wait_until_ready()
            yield
        finally:
            secrecy.record(self.log)
            self._remove_all()

    def stop(self) -> int:
        """Stop the agent and return its exit code."""
        self.podman("stop", _CONTAINER)
        return int(self._inspect("{{.State.ExitCode}}"))

    @property
    def log(self) -> str:
        """The agent's output so far."""
        done = self._run(["podman", "logs", _CONTAINER])
        return done.stdout + done.stderr

    @property
    def pid(self) -> int:
        """The agent's PID."""
        return int(self._inspect("{{.State.Pid}}"))

    @contextmanager
    def files(self) -> Iterator[Path]:
        """Mount the image and yield its root directory."""
        yield Path(self.podman("image", "mount", IMAGE))
        self.podman("image", "unmount", IMAGE)

    def podman(self, *arguments: str) -> str:
        """Run a Podman command and return its output."""
        return self._run(["podman", *arguments]).stdout.strip()

    def close(self) -> None:
        """Remove everything except the image store."""
        self._remove_all()
        unmount_below(_STORE)
        shutil.rmtree(self._directory)

    def _have_base(self) -> None:
        if _BASE not in self.podman("images", "--format={{.Repository}}:{{.Tag}}").split():
            tar = ["tar", f"--directory={bare_debian('bookworm')}", "--create", "."]
            with subprocess.Popen(tar, stdout=subprocess.PIPE) as base:
                self._run(["podman", "import", "-", _BASE], stdin=base.stdout)

    def _build(self) -> None:
        """Build without an image registry, with the host's pip settings for packages."""
        *build, context = documented("podman build")
        settings = f"--volume={self._pip_settings()}:{_XDG}:ro"
        build += [f"--build-arg=BASE={_BASE}", "--network=host", settings]
        self._run([*build, f"--tag={_BUILD_STAGE}", "--target=build", context])
        self._run([*build, context])
        self.podman("image", "prune", "--force")

    def _pip_settings(self) -> Path:
        """Write the host's pip settings to a directory and return it."""
        settings = settings_of_pip()
        directory = self._directory / "xdg"
        (directory / "pip").mkdir(parents=True)
        if "cert" in settings:
            shutil.copy(settings["cert"], directory / "cert.pem")
            settings["cert"] = f"{_XDG}/cert.pem"
        lines = [f"{name} = {value}\n" for name, value in settings.items()]
        self._file("xdg/pip/pip.conf", "".join(["[global]\n", *lines]))
        return directory

    def _lay_out(self, entries: str) -> None:
        for name, mode in (("etc/vouchd", 0o755), ("run/vouchd", 0o755), ("var/lib/vouchd", 0o700)):
            place = self._directory / name
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir(parents=True)
            place.chmod(mode)
            os.chown(place, USER, USER)
        self._file("etc/vouchd/agent.yaml", CONFIG)
        self._file("etc/vouchd/entries.yaml", entries)

    def _here(self, word: str) -> str:
        """Replace the host's directories and user in a word of the command by the test's."""
        for name in ("/etc/vouchd:", "/run/vouchd:", "/var/lib/vouchd:"):
            word = f"{self._directory}{word}" if word.startswith(name) else word
        return word.replace("$(id -u vouchd):$(id -g vouchd)", f"{USER}:{USER}")

    def _file(self, name: str, text: str) -> str:
        place = self._directory / name
        place.write_text(text)
        return str(place)

    def _inspect(self, what: str) -> str:
        return self.podman("inspect", f"--format={what}", _CONTAINER)

    def _remove_all(self) -> None:
        self.podman("rm", "--force", "--all", "--time=0")

    def _wait_until_ready(self) -> None:
        follow = ["timeout", str(SAFETY_SECONDS), "podman", "logs", "--follow", _CONTAINER]
        pipe = subprocess.PIPE
        with subprocess.Popen(follow, env=self._environment, stderr=pipe, text=True) as logs:
            ready = any(" ready on " in line for line in logs.stderr or ())
            logs.terminate()
        assert ready, self.log

    def _run(
        self, command: Sequence[str], stdin: IO[bytes] | int | None = subprocess.DEVNULL
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            command, env=self._environment, cwd=REPOSITORY, text=True, check=False,
            stdin=stdin, capture_output=True,
        )  # fmt: skip
        output = f"{done.stdout[-2000:]}{done.stderr[-2000:]}"
        assert done.returncode == 0, f"{shlex.join(command)}: {output}"
        return done


def settings_of_pip() -> dict[str, str]:
    """Return pip's settings on this host, such as `cert` and `index-url`."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    # pip lists environment settings first; they override the settings of files.
    found = [line.split("=", 1) for line in reversed(listed.splitlines())]
    return {name.rpartition(".")[2]: ast.literal_eval(value) for name, value in found}
