"""`make demo`: two services prove their identities to each other, and an impostor gets none.

The demo starts an agent in a temporary folder, two services with py-spiffe, and an impostor. As
root each of the three runs as a user of its own. As an ordinary user they all run as that user, and
the impostor is another program. `make demo KEEP=1` leaves the agent running.
"""

from __future__ import annotations

import json
import os
import select
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

REPOSITORY = Path(__file__).resolve().parents[2]
SERVICE = REPOSITORY / "deploy/demo/service.py"
VOUCHD = Path(sys.executable).with_name("vouchd")
PYTHON = Path(sys.executable).resolve()
ORDERS_UID, PAYMENTS_UID, IMPOSTOR_UID = 61001, 61002, 61003
ORDERS = "spiffe://example.org/orders"
PAYMENTS = "spiffe://example.org/payments"
RENAMED = "spiffe://example.org/payments/eu"

SETTINGS = """\
trust_domain: example.org
data_dir: data
socket_path: agent.sock
admin_socket_path: admin.sock
entries: [entries.yaml]
"""
ENTRIES = """\
entries:
  - id: orders
    spiffe_id: {orders}
    selectors: [{selectors[orders]}]
  - id: payments
    spiffe_id: {payments}
    selectors: [{selectors[payments]}]
"""
ENTRY_FOR_YOU = """\
  - id: you
    spiffe_id: /you
    selectors: [unix:uid:{uid}]
"""


@dataclass(frozen=True, slots=True)
class Cast:
    """Which selectors the entries ask for, and how the processes of the demo start."""

    selectors: dict[str, str]
    service: list[str | Path]
    impostor: list[str | Path]
    uids: dict[str, int]
    explanation: str

    def command(self, role: str, name: str, *arguments: str) -> list[str | Path]:
        """Return the command that starts a service or the impostor."""
        program = self.impostor if name == "impostor" else self.service
        uid = ["--uid", str(self.uids[name])] if name in self.uids else []
        return [*program, SERVICE, role, *uid, "--name", name, *arguments]


def cast_of_root() -> Cast:
    """Use three UIDs; the demo needs no accounts for them."""
    return Cast(
        selectors={"orders": f"unix:uid:{ORDERS_UID}", "payments": f"unix:uid:{PAYMENTS_UID}"},
        service=[sys.executable],
        impostor=[sys.executable],
        uids={"orders": ORDERS_UID, "payments": PAYMENTS_UID, "impostor": IMPOSTOR_UID},
        explanation="You are root, so each process runs as a user of its own: "
        f"orders {ORDERS_UID}, payments {PAYMENTS_UID}, impostor {IMPOSTOR_UID}.",
    )


def cast_of_user(folder: Path) -> Cast:
    """Use one user and two programs: the Python of the system, and a copy of it."""
    selectors = f"unix:uid:{os.getuid()}, 'unix:path:{PYTHON}'"
    copy = folder / "impostor"
    subprocess.run([sys.executable, "-m", "venv", "--copies", "--without-pip", copy], check=True)
    # The copy finds the packages of this environment by PYTHONPATH (see `process`).
    return Cast(
        selectors={"orders": selectors, "payments": selectors},
        service=[sys.executable],
        impostor=[copy / "bin/python"],
        uids={},
        explanation="You are not root, so all processes run as you, and the impostor is only "
        "another program:\na copy of Python. Both services have both identities; each picks one by "
        "its name.\nAs root (sudo make demo) each process runs as a user of its own.",
    )


def main() -> None:
    """Run the demo."""
    folder = Path(tempfile.mkdtemp(prefix="vouchd-demo-"))
    folder.chmod(0o755)  # services of other users connect to the socket in it
    keep = os.environ.get("KEEP", "") not in {"", "0"}
    with ExitStack() as stack:
        if not keep:
            stack.callback(shutil.rmtree, folder)
        stack.enter_context(explained(folder))
        cast = cast_of_root() if os.getuid() == 0 else cast_of_user(folder)
        title("1. Start the agent")
        print(cast.explanation)
        (folder / "agent.yaml").write_text(SETTINGS)
        write_entries(folder, cast, PAYMENTS)
        pid = stack.enter_context(agent(folder, keep=keep))
        title("2. Two services, mutual TLS with py-spiffe")
        payments, stdin = two_services(stack, folder, cast)
        title("3. An impostor")
        impostor(folder, cast)
        title("4. Edit an entry")
        edit(folder, cast, payments)
        stdin.close()
        title("Explore further")
        if keep:
            write_entries(folder, cast, RENAMED, ENTRY_FOR_YOU.format(uid=os.getuid()))
            explore(folder, pid)
        else:
            print("make demo KEEP=1   leaves an agent running and shows commands to try")
            print("README.md          has a walk with an entry of your own")


def write_entries(folder: Path, cast: Cast, payments: str, more: str = "") -> None:
    """Write the entries and put them in place by one rename."""
    text = ENTRIES.format(orders=ORDERS, payments=payments, selectors=cast.selectors) + more
    fresh = folder / "entries.yaml.new"
    fresh.write_text(text)
    fresh.replace(folder / "entries.yaml")


@contextmanager
def agent(folder: Path, *, keep: bool) -> Iterator[int]:
    """Run the agent, with its log in a file; yield its PID."""
    log, notifications = folder / "agent.log", folder / "notify.sock"
    with log.open("w") as stderr, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(notifications))
        # An agent that stays holds neither this terminal's session nor its pipes.
        process = subprocess.Popen(
            [VOUCHD, "run", "-c", folder / "agent.yaml"],
            env={**os.environ, "NOTIFY_SOCKET": str(notifications)},
            stdin=subprocess.DEVNULL,
            stdout=stderr,
            stderr=stderr,
            start_new_session=keep,
        )
        try:
            wait_until_ready(process, manager, log)
            manager.close()  # later messages would fill its queue
            print(f"agent {process.pid} serves the Workload API on {folder}/agent.sock")
            yield process.pid
        except BaseException:
            process.terminate()
            raise
        else:
            if not keep:
                process.terminate()
        finally:
            if not keep:
                process.wait()


def wait_until_ready(process: subprocess.Popen[bytes], manager: socket.socket, log: Path) -> None:
    """Wait until the agent reports that it is ready, as it does to systemd (sd_notify(3))."""
    exited = os.pidfd_open(process.pid)
    try:
        while True:
            readable, _, _ = select.select([manager.fileno(), exited], [], [])
            if exited in readable:
                sys.exit(f"the agent did not start:\n{log.read_text()}")
            if b"READY=1" in manager.recv(4096).split(b"\n"):
                return
    finally:
        os.close(exited)


def two_services(stack: ExitStack, folder: Path, cast: Cast) -> tuple[IO[str], IO[str]]:
    """Let orders call payments; return the output and the input of payments."""
    serve = cast.command("serve", "payments", "--peer", ORDERS)
    payments, stdin = stack.enter_context(process(folder, serve))
    ready = event(payments)
    print(f"payments has {ready['spiffe_id']}")
    print(f"         accepts {ORDERS} alone")
    dial = cast.command("dial", "orders", "--peer", PAYMENTS, "--port", str(ready["port"]))
    with process(folder, dial) as (orders, _):
        print(f"orders   has {event(orders)['spiffe_id']}")
        print(f"         calls {PAYMENTS} alone")
        answer, accepted = event(orders), event(payments)
        print(f"payments accepted {accepted['peer']}")
        print(f"orders   reached  {answer['peer']}: {answer['answer']!r}")
    return payments, stdin


def impostor(folder: Path, cast: Cast) -> None:
    """Show the refusal of the impostor and the reason that `vouchd explain` gives."""
    with process(folder, cast.command("impostor", "impostor")) as (output, stdin):
        answer = event(output)
        if "refused" not in answer:
            sys.exit(f"the impostor got {answer['spiffe_id']}")
        print(f"impostor asked for an identity: {answer['refused']}")
        pid = answer["pid"]
        print(f"$ vouchd explain {pid}   (the end of its output)")
        explained = subprocess.run(
            [VOUCHD, "explain", str(pid), "-c", folder / "agent.yaml"],
            capture_output=True,
            text=True,
            check=False,
        )
        _, found, reason = explained.stdout.partition("\nverdict\n")
        print(reason.rstrip() if found else explained.stdout + explained.stderr)
        stdin.close()


def edit(folder: Path, cast: Cast, payments: IO[str]) -> None:
    """Give payments another SPIFFE ID and wait until its open stream brings it."""
    print(f"entries.yaml: {PAYMENTS} becomes {RENAMED}")
    begin = time.perf_counter()
    write_entries(folder, cast, RENAMED)
    while (spiffe_id := event(payments)["spiffe_id"]) != RENAMED:
        pass
    milliseconds = (time.perf_counter() - begin) * 1000
    print(
        f"payments has {spiffe_id}, {milliseconds:.0f} ms later, over the stream that it had open"
    )


@contextmanager
def process(folder: Path, command: list[str | Path]) -> Iterator[tuple[IO[str], IO[str]]]:
    """Run a process with nothing but the socket's address; yield its output and its input."""
    packages = [path for path in sys.path if path.endswith("site-packages")]
    environment = {
        **os.environ,
        "SPIFFE_ENDPOINT_SOCKET": f"unix://{folder}/agent.sock",
        "PYTHONPATH": os.pathsep.join(packages),
    }
    with (
        (folder / "services.log").open("a") as log,
        subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        ) as running,
    ):
        if running.stdin is None or running.stdout is None:
            raise AssertionError
        try:
            yield running.stdout, running.stdin
        except BaseException:
            running.kill()
            raise


def event(output: IO[str]) -> dict[str, Any]:
    """Read one report of a process."""
    line = output.readline()
    if not line:
        raise EOFError
    report: dict[str, Any] = json.loads(line)
    return report


@contextmanager
def explained(folder: Path) -> Iterator[None]:
    """End the demo with the services' own error messages if one of them ends too early."""
    try:
        yield
    except EOFError:
        sys.exit(f"a service ended too early:\n{(folder / 'services.log').read_text()}")


def explore(folder: Path, pid: int) -> None:
    """Print commands to try with the agent, which keeps running."""
    vouchd = shlex.quote(os.path.relpath(VOUCHD))
    print(f"""The agent stays, with its files in {folder}:

  export SPIFFE_ENDPOINT_SOCKET=unix://{folder}/agent.sock
  {vouchd} fetch x509
  {vouchd} fetch jwt -a my-service
  {vouchd} watch x509
  {vouchd} status -c {folder}/agent.yaml
  {vouchd} explain $$ -c {folder}/agent.yaml

Edit {folder}/entries.yaml and see the push. Stop the agent and remove its files:

  kill {pid}; tail --pid={pid} -f /dev/null; rm -r {folder}""")


def title(text: str) -> None:
    """Print a headline."""
    print(f"\n--- {text}", flush=True)


if __name__ == "__main__":
    main()
