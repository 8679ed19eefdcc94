"""`make demo`: a real process gets its identity because of who the kernel says it is.

Starts the agent with the example entries and one for whoever runs this, on a private socket in a
temporary folder; runs a workload against it, and shows what the agent saw. Needs no root.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

REPOSITORY = Path(__file__).resolve().parents[2]
VOUCHD = Path(sys.executable).with_name("vouchd")
AUDIENCE = "demo-service"

SETTINGS = """\
trust_domain: example.org
data_dir: data
socket_path: agent.sock
entries: [entries.d]
log: {level: debug, format: json}
"""
ENTRY = """\
entries:
  - id: demo-workload
    spiffe_id: /demo/workload
    selectors:
      - unix:uid:%d
      - unix:path:%s
"""


def main() -> None:
    """Run the demo."""
    with tempfile.TemporaryDirectory(prefix="vouchd-demo-") as name:
        folder = Path(name)
        prepare(folder)
        with agent(folder):
            workload(folder)
        show_what_the_agent_saw(folder)
    print("\nBoth SVIDs were verified before they were shown. Next: README.md, Your own program.")


def prepare(folder: Path) -> None:
    """Write the configuration and the entries."""
    entries = folder / "entries.d"
    shutil.copytree(REPOSITORY / "config/entries.d", entries)
    executable = Path(sys.executable).resolve()
    (entries / "demo.yaml").write_text(ENTRY % (os.getuid(), executable))
    (folder / "agent.yaml").write_text(SETTINGS)


@contextmanager
def agent(folder: Path) -> Iterator[None]:
    """The agent, from its ready line to its end; its log goes to a file."""
    title("The agent starts")
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [VOUCHD, "run", "-c", folder / "agent.yaml"], stderr=subprocess.PIPE, text=True
        )
        try:
            if process.stderr is None or "ready" not in (ready := process.stderr.readline()):
                sys.exit(f"the agent did not start: {ready}")
            print(ready, end="")
            yield
        finally:
            process.terminate()
            log.write(process.communicate()[1])


def workload(folder: Path) -> None:
    """A process of its own, with nothing but the socket's address."""
    environment = {**os.environ, "SPIFFE_ENDPOINT_SOCKET": f"unix://{folder}/agent.sock"}
    for words in (
        ["fetch", "x509", "--write", str(folder / "svid")],
        ["fetch", "jwt", "-a", AUDIENCE],
    ):
        title(f"A workload runs: vouchd {' '.join(words)}")
        process = subprocess.run([VOUCHD, *words], env=environment, check=False)
        if process.returncode:
            sys.exit("the workload got no identity")
    if openssl := shutil.which("openssl"):
        title("OpenSSL agrees")
        svid = folder / "svid"
        subprocess.run(
            [openssl, "verify", "-CAfile", svid / "bundle.0.pem", svid / "svid.0.pem"], check=True
        )


def show_what_the_agent_saw(folder: Path) -> None:
    """What the kernel said of the callers, as the agent logged it."""
    title("What the agent saw")
    for line in (folder / "log").read_text().splitlines():
        event = json.loads(line)
        if event["event"] == "caller attested":
            show_caller(event)
            return
    sys.exit("the agent attested nobody")


def show_caller(event: dict[str, Any]) -> None:
    """One caller: what the kernel said, what follows from it."""
    print(f"the kernel said:   pid {event['pid']}, uid {event['uid']}, gid {event['gid']}")
    print(f"proof:             {event['proof']}")
    print("selectors:         " + "\n                   ".join(event["selectors"]))
    print("matched entries:   " + ", ".join(event["entries"]))


def title(text: str) -> None:
    """A headline."""
    print(f"\n--- {text}", flush=True)


if __name__ == "__main__":
    main()
