"""The command line as a process of its own: its imports and its stdout."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.agent import REPOSITORY
from tests.support.cli import command


def test_a_closed_stdout_causes_no_error_message(tmp_path: Path) -> None:
    config = tmp_path / "agent.yaml"
    config.write_text("trust_domain: example.org\nentries: [e.yaml]\n")
    (tmp_path / "e.yaml").write_text("entries: [{spiffe_id: /x, selectors: [unix:uid:1]}]\n")
    read_end, write_end = os.pipe()
    os.close(read_end)
    process = subprocess.run(
        command("entries", "list", "-c", config),
        cwd=REPOSITORY,
        stdout=write_end,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(write_end)
    assert process.stderr == b""
    assert process.returncode == 1


# Each costs every command, or every agent, some megabytes and tens of milliseconds.
LARGE = {
    "agent.cli.main": {"grpc", "pydantic", "rich", "importlib.metadata"},
    "agent.cli.run": {"aiohttp", "dbus_fast", "prometheus_client", "psutil", "pygments", "rich"},
}


@pytest.mark.parametrize("module", LARGE)
def test_import_of_a_command_imports_no_large_package_in_vain(module: str) -> None:
    script = f"import {module}, sys; print({LARGE[module]} & set(sys.modules))"
    process = subprocess.run(
        [sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert process.stdout == "set()\n"
