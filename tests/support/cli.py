"""Run `vouchd` in a process of its own, or in this process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import pytest

from agent.cli import main as cli
from tests.support.agent import REPOSITORY, SAFETY_SECONDS


@dataclass(frozen=True, slots=True)
class Outcome:
    """Exit code and output of a command."""

    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        """The answer of `--output json`."""
        assert self.code == 0, self.stderr
        return json.loads(self.stdout)


def vouchd(*arguments: object, **env: str) -> Outcome:
    """Run a command to its end. `env` is added to the environment."""
    finished = subprocess.run(
        command(*arguments),
        cwd=REPOSITORY,
        env={**os.environ, **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SAFETY_SECONDS,
        check=False,
    )
    return Outcome(finished.returncode, finished.stdout, finished.stderr)


def command(*arguments: object) -> list[str]:
    """Return the arguments to start a command with."""
    return [sys.executable, "-m", "agent", *map(str, arguments)]


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Run a command line in this process; return its exit code, stdout and stderr."""
    code = cli.execute([*map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err
