"""Runs `vouchd` in a process of its own, as people and scripts do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from tests.support.agent import PATIENCE_SECONDS, REPOSITORY


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a command left behind."""

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
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    return Outcome(finished.returncode, finished.stdout, finished.stderr)


def command(*arguments: object) -> list[str]:
    """The command line, for those who start it themselves."""
    return [sys.executable, "-m", "agent", *map(str, arguments)]
