"""Programs without gRPC: `vouchd fetch x509 --write` writes files for them.

A `Workload` is a program of its own path, so that entries can tell two of them apart by
`unix:path` whoever runs the tests: it is a copy of the Python interpreter, which runs `vouchd`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.agent import REPOSITORY

if TYPE_CHECKING:
    from tests.support.agent import RunningAgent


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A program with an identity for its path."""

    name: str
    program: Path

    @classmethod
    def install(cls, name: str, directory: Path) -> Workload:
        program = directory / name
        shutil.copy(Path(sys.executable).resolve(), program)
        return cls(name=name, program=program)

    @property
    def entry(self) -> str:
        return f'  - {{spiffe_id: /{self.name}, selectors: ["unix:path:{self.program}"]}}\n'

    def fetch(self, agent: RunningAgent, directory: Path) -> Path:
        """Fetch the program's X.509-SVIDs into a directory and return the directory."""
        done = subprocess.run(
            [self.program, "-m", "agent", "fetch", "x509", "--write", directory],
            env={**os.environ, **_home(), "SPIFFE_ENDPOINT_SOCKET": agent.address},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return directory


def _home() -> dict[str, str]:
    """Return the variables by which the copy finds the original's library and packages."""
    packages = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    return {
        "PYTHONHOME": f"{sys.base_prefix}:{sys.base_exec_prefix}",
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), *sorted(packages)]),
        "LD_LIBRARY_PATH": str(sysconfig.get_config_var("LIBDIR")),
    }
