"""Set up the clients: a virtual environment for the Python clients, a binary of the Go client."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import NoReturn

import pytest

from tests.interop.foreign import ForeignClient
from tests.support.agent import REPOSITORY

HERE = Path(__file__).parent
ENVIRONMENT = REPOSITORY / ".venv-interop"
REQUIREMENTS = HERE / "clients" / "requirements.txt"


def skip_or_fail(reason: str) -> NoReturn:
    """Skip if a tool is missing; fail in CI, which has every tool."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def foreign_python() -> Path:
    """Return the Python of the environment with the pinned client libraries."""
    made_from = ENVIRONMENT / "requirements.txt"
    if not made_from.exists() or made_from.read_bytes() != REQUIREMENTS.read_bytes():
        skip_or_fail("the Python clients are not installed: run tests/interop/setup.sh")
    return ENVIRONMENT / "bin" / "python"


@pytest.fixture(scope="session")
def py_spiffe(foreign_python: Path) -> ForeignClient:
    return ForeignClient(argv=[foreign_python, HERE / "clients" / "py_spiffe.py"])


@pytest.fixture(scope="session")
def defakto(foreign_python: Path) -> ForeignClient:
    return ForeignClient(argv=[foreign_python, HERE / "clients" / "defakto.py"])


@pytest.fixture(scope="session")
def reflecting(foreign_python: Path) -> ForeignClient:
    return ForeignClient(argv=[foreign_python, HERE / "clients" / "reflecting.py"])


@pytest.fixture(scope="session")
def go_spiffe(tmp_path_factory: pytest.TempPathFactory) -> ForeignClient:
    if shutil.which("go") is None:
        skip_or_fail("`go` is not on PATH")
    program = tmp_path_factory.mktemp("go") / "go-spiffe-client"
    built = subprocess.run(
        ["go", "build", "-mod=readonly", "-buildvcs=false", "-o", program, "."],
        cwd=HERE / "go",
        env={**os.environ, "GOTOOLCHAIN": "local"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    return ForeignClient(argv=[program])
