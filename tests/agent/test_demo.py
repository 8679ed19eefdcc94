"""`make demo` shows an accepted peer, a refused one with the reason, and a push."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.agent import REPOSITORY

DEMO = (sys.executable, str(REPOSITORY / "deploy/demo/demo.py"))


def _demo(folder: Path, keep: str = "", prefix: tuple[str, ...] = ()) -> str:
    done = subprocess.run(
        [*prefix, *DEMO],
        cwd=REPOSITORY,
        env={**os.environ, "KEEP": keep, "TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _in_order(text: str, *parts: str) -> None:
    position = 0
    for part in parts:
        position = text.find(part, position)
        assert position >= 0, f"{part!r} is missing in:\n{text}"


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that the services of other users may enter, with a short path for sockets."""
    with tempfile.TemporaryDirectory(prefix="demo-", dir="/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_demo_shows_mutual_tls_a_refusal_with_its_reason_and_a_push(folder: Path) -> None:
    wanted = "unix:uid:61001" if os.getuid() == 0 else "unix:path:"
    _in_order(
        _demo(folder),
        "payments accepted spiffe://example.org/orders",
        "orders   reached  spiffe://example.org/payments: 'welcome'",
        "impostor asked for an identity: PERMISSION_DENIED: no identity issued",
        "$ vouchd explain ",
        wanted,
        "payments has spiffe://example.org/payments/eu",
        "make demo KEEP=1",
    )
    assert list(folder.iterdir()) == []


@pytest.mark.skipif(os.getuid() != 0, reason="the test above is the one of an ordinary user")
def test_demo_of_an_ordinary_user_refuses_another_program(folder: Path) -> None:
    ordinary = ("unshare", "--user", "--map-user=1000", "--map-group=1000", "--")
    _in_order(
        _demo(folder, prefix=ordinary),
        "You are not root, so all processes run as you",
        "orders   reached  spiffe://example.org/payments: 'welcome'",
        "PERMISSION_DENIED",
        f"unix:path:{Path(sys.executable).resolve()}",
        "/impostor/bin/python",
        "payments has spiffe://example.org/payments/eu",
    )


def test_kept_agent_serves_the_commands_that_the_demo_names(folder: Path) -> None:
    output = _demo(folder, keep="1")
    found = re.search(r"^  kill (\d+);", output, re.MULTILINE)
    assert found
    agent = psutil.Process(int(found[1]))  # noqa: TID251 - a test's own process
    try:
        commands = [line for line in output.splitlines() if line.startswith("  ")]
        script = "\n".join(
            line for line in commands if " watch " not in line and " kill " not in line
        )
        done = subprocess.run(
            ["bash", "-ec", script[script.index("  export") :]],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "spiffe://example.org/you" in done.stdout
    finally:
        agent.send_signal(signal.SIGTERM)
        agent.wait(30)
    removal = found.string.split("rm -r ")[1].strip()
    assert Path(shlex.split(removal)[0]).parent == folder
