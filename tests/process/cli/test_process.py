"""The command line as a process of its own: its imports and its stdout."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

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


def test_importing_the_command_line_imports_neither_grpc_nor_pydantic() -> None:
    script = "import agent.cli, sys; print({'grpc', 'pydantic'} & set(sys.modules))"
    process = subprocess.run(
        [sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert process.stdout == "set()\n"
