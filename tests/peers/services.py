"""The two agents that are measured, and the server of the peer: each in a folder of its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket as sockets
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import click

from tests.bench.servers import CONFIG, Server, x509
from tests.bench.wire import CallFailedError, Connection
from tests.peers import processes
from tests.support.agent import REPOSITORY, SAFETY_SECONDS, TRUST_DOMAIN

OURS = "vouchd"
PEER = "spire-agent"
_BUILD = REPOSITORY / "tests/peers/build.sh"
_POLL_SECONDS = 0.002
_PATIENCE_SECONDS = 120.0
"""The time-out of a start: the peer signs an SVID for each of up to 1,000 entries first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A registration entry in the terms of both: selectors are `kind:name:value`."""

    path: str
    selectors: Sequence[str]


class Service(Server):
    """A running agent with all its processes."""

    __slots__ = ()

    def pids(self) -> list[int]:
        """Return the PIDs of its processes."""
        return processes.family(self.pid, processes.parents())

    def cpu_seconds(self) -> float:
        """Return the CPU time of its processes that run now."""
        return processes.cpu_seconds(self.pids())

    def memory_kib(self) -> int:
        """Return the proportional set size of its processes."""
        return processes.pss_kib(self.pids())

    def descriptors(self) -> int:
        """Return the number of descriptors of its processes."""
        return processes.descriptors(self.pids())


class Program:
    """A program with a log file. Owns the process: `stop` it."""

    def __init__(self, name: str, command: Sequence[str], folder: Path) -> None:
        self.name = name
        self.folder = folder
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None

    def spawn(self) -> subprocess.Popen[bytes]:
        """Start the process in a session of its own, so that Ctrl-C does not reach it."""
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=REPOSITORY,
                env=_as_installed(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return self._process

    def stop(self) -> None:
        """End the process; after a time-out, kill it."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(SAFETY_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def require_running(self) -> None:
        """Raise click.ClickException with the end of the log if the process has ended."""
        if self._process is None or self._process.poll() is not None:
            log = (self.folder / "log").read_text(errors="replace")
            raise click.ClickException(f"{self.name} has ended:\n{log[-2000:]}")


class Agent(Program):
    """A program that serves the Workload API on `agent.sock` of its folder."""

    @property
    def socket(self) -> Path:
        """The path of the Workload API's socket."""
        return self.folder / "agent.sock"

    def start(self) -> tuple[Service, float]:
        """Start the program; return it, and the seconds until this process got its SVIDs.

        Raises:
            click.ClickException: it ended, or gave none.
        """
        self.socket.unlink(missing_ok=True)
        began = time.perf_counter()
        pid = self.spawn().pid
        while not self._serves():
            self.require_running()
            if time.perf_counter() - began > _PATIENCE_SECONDS:
                raise click.ClickException(f"{self.name} gave no X.509-SVID: {self.folder}/log")
            time.sleep(_POLL_SECONDS)  # noqa: TID251 - another program's readiness has no event
        took = time.perf_counter() - began
        return Service(name=self.name, socket=str(self.socket), pid=pid), took

    def _serves(self) -> bool:
        try:
            with closing(Connection(str(self.socket))) as connection:
                connection.fetch(x509())
        except (OSError, CallFailedError):
            return False
        return True


class Spire:
    """A SPIRE server on loopback. Owns its process: `close` it.

    Each agent has a node name of its own, the parent of its entries.
    """

    def __init__(self, binaries: Path, folder: Path) -> None:
        folder.mkdir()
        self._binaries = binaries
        self._folder = folder
        self._port = _free_port()
        config = folder / "server.conf"
        config.write_text(_server_config(folder, self._port))
        command = [str(binaries / "spire-server"), "run", "-config", str(config)]
        self._program = Program("spire-server", command, folder)
        self._program.spawn()
        self._await()

    def close(self) -> None:
        """End the server."""
        self._program.stop()

    def agent(
        self, folder: Path, entries: Sequence[Entry], *, reads_programs: bool = False
    ) -> Agent:
        """Return an agent for these entries that has not started yet."""
        folder.mkdir()
        node = f"spiffe://{TRUST_DOMAIN}/node/{folder.name}"
        token = self._run("token", "generate", "-spiffeID", node).split()[1]
        self.register(folder.name, entries)
        (folder / "bundle.pem").write_text(self._run("bundle", "show"))
        config = folder / "agent.conf"
        config.write_text(_agent_config(folder, self._port, token, reads_programs))
        command = [str(self._binaries / "spire-agent"), "run", "-config", str(config)]
        return Agent(PEER, command, folder)

    def register(self, node: str, entries: Sequence[Entry]) -> None:
        """Create entries for the agent in the folder with this name."""
        made = [
            {
                "parent_id": f"spiffe://{TRUST_DOMAIN}/node/{node}",
                "spiffe_id": f"spiffe://{TRUST_DOMAIN}{each.path}",
                "selectors": [
                    dict(zip(("type", "value"), selector.split(":", 1), strict=True))
                    for selector in each.selectors
                ],
            }
            for each in entries
        ]
        data = self._folder / "entries.json"
        data.write_text(json.dumps({"entries": made}))
        self._run("entry", "create", "-data", str(data))

    def _await(self) -> None:
        end = time.perf_counter() + _PATIENCE_SECONDS
        while time.perf_counter() < end:
            with suppress(subprocess.CalledProcessError):
                self._run("healthcheck")
                return
            self._program.require_running()
        raise click.ClickException(f"spire-server does not serve: {self._folder}/log")

    def _run(self, *arguments: str) -> str:
        words = 1 if arguments[0] == "healthcheck" else 2
        command = [
            str(self._binaries / "spire-server"),
            *arguments[:words],
            "-socketPath",
            str(self._folder / "api.sock"),
            *arguments[words:],
        ]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def vouchd(folder: Path, entries: Sequence[Entry], config: str = "") -> Agent:
    """Return an agent of ours for these entries that has not started yet."""
    folder.mkdir()
    write_entries(folder, entries)
    (folder / "agent.yaml").write_text(
        f"trust_domain: {TRUST_DOMAIN}\ndata_dir: data\nsocket_path: agent.sock\n"
        f"admin_socket_path: admin.sock\nentries: [entries.yaml]\n{CONFIG}{config}\n"
    )
    command = [sys.executable, "-m", "agent", "run", "-c", str(folder / "agent.yaml")]
    return Agent(OURS, command, folder)


def write_entries(folder: Path, entries: Sequence[Entry]) -> float:
    """Replace the entry file of our agent by a rename; return the time of the rename."""
    made = ({"spiffe_id": each.path, "selectors": list(each.selectors)} for each in entries)
    beside = folder / "entries.new"
    beside.write_text("entries:\n" + "".join(f"  - {json.dumps(each)}\n" for each in made))
    began = time.perf_counter()
    beside.rename(folder / "entries.yaml")
    return began


def binaries() -> Path:
    """Return the folder of the peer's programs; build them at the first time.

    Raises:
        click.ClickException: Go is missing, or the build failed.
    """
    if shutil.which("go") is None:
        raise click.ClickException("the peer is a Go program, and there is no go: install Go 1.25")
    done = subprocess.run([_BUILD], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise click.ClickException(f"{_BUILD} failed; why is above")
    return Path(done.stdout.strip())


def version(folder: Path) -> str:
    """Return the version that spire-agent states of itself."""
    command = [str(folder / "spire-agent"), "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return (done.stdout + done.stderr).strip()


@contextmanager
def running(agent: Agent) -> Iterator[Service]:
    """Run an agent for the block."""
    try:
        yield agent.start()[0]
    finally:
        agent.stop()


def _as_installed() -> dict[str, str]:
    """Return the environment of an agent: it may keep byte code, as an installed package has it."""
    return {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}


def _free_port() -> int:
    with sockets.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def _server_config(folder: Path, port: int) -> str:
    return f"""
server {{
  bind_address = "127.0.0.1"
  bind_port = "{port}"
  socket_path = "{folder}/api.sock"
  trust_domain = "{TRUST_DOMAIN}"
  data_dir = "{folder}"
  log_level = "WARN"
  ca_ttl = "168h"
}}
plugins {{
  DataStore "sql" {{
    plugin_data {{
      database_type = "sqlite3"
      connection_string = "{folder}/datastore.sqlite3"
    }}
  }}
  NodeAttestor "join_token" {{ plugin_data {{}} }}
  KeyManager "memory" {{ plugin_data {{}} }}
}}
"""


def _agent_config(folder: Path, port: int, token: str, reads_programs: bool) -> str:  # noqa: FBT001
    return f"""
agent {{
  data_dir = "{folder}"
  server_address = "127.0.0.1"
  server_port = "{port}"
  socket_path = "{folder}/agent.sock"
  trust_bundle_path = "{folder}/bundle.pem"
  trust_domain = "{TRUST_DOMAIN}"
  join_token = "{token}"
  log_level = "WARN"
}}
plugins {{
  NodeAttestor "join_token" {{ plugin_data {{}} }}
  KeyManager "disk" {{ plugin_data {{ directory = "{folder}" }} }}
  WorkloadAttestor "unix" {{
    plugin_data {{
      discover_workload_path = {json.dumps(reads_programs)}
      workload_size_limit = {0 if reads_programs else -1}
    }}
  }}
}}
"""


def me() -> str:
    """Return the selector of this process's user."""
    return f"unix:uid:{os.getuid()}"


def environment() -> Mapping[str, str]:
    """Return the environment of a Python program that runs as a copy of the interpreter."""
    path = os.pathsep.join([str(REPOSITORY), *filter(None, sys.path)])
    return {**os.environ, "PYTHONHOME": sys.base_prefix, "PYTHONPATH": path}
