"""vouchd passes the conformance suite, and the suite needs nothing of vouchd."""

from __future__ import annotations

import ast
import filecmp
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NoReturn
from xml.etree import ElementTree as ET

import pytest

from tests.conftest import AgentFactory
from tests.support.agent import REPOSITORY

PROJECT = REPOSITORY / "tests/conformance"
SUITE = PROJECT / "workload_api_conformance"
ENVIRONMENT = REPOSITORY / ".venv-conformance"
CONTROL = f"{shlex.quote(sys.executable)} -m tests.agent.conformance.control"
# vouchd has no WIT profile; only root sees the descriptors of another process.
MAY_SKIP = {"the server has no WIT profile"} | (
    set() if os.geteuid() == 0 else {"this process may not see the server's descriptors"}
)
_ID = re.compile(r"test_([A-Z][A-Z0-9])_(\d\d)_\w+")


def _unavailable(why: str) -> NoReturn:
    """Fail in CI, which installs everything; skip elsewhere."""
    if os.environ.get("CI") == "true":
        pytest.fail(why)
    pytest.skip(why)


@pytest.fixture
def python() -> Path:
    """The interpreter of an environment with the suite and without vouchd."""
    found = ENVIRONMENT / "bin/python"
    if not found.exists():
        _unavailable("the conformance suite is not installed: run make conformance-suite")
    return found


def _run(python: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python, *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )


def _suite(python: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return _run(python, "-I", "-m", "workload_api_conformance", *arguments)


def test_vouchd_passes_the_suite_and_skips_only_the_wit_profile(
    python: Path, tmp_path: Path
) -> None:
    report = tmp_path / "report.xml"
    done = _suite(python, "--control", CONTROL, "--junit-xml", report)
    assert done.returncode == 0, done.stdout + done.stderr
    cases = list(ET.parse(report).iter("testcase"))  # noqa: S314 - pytest wrote it just now
    assert len(cases) > 200
    assert {skip.get("message") for case in cases for skip in case.iter("skipped")} <= MAY_SKIP


def test_the_suite_runs_against_a_socket_alone(python: Path, agent_factory: AgentFactory) -> None:
    address = agent_factory().address
    chosen = ("-k", "X5_15 or WL_25")
    done = _suite(python, "--workload-socket", address, *chosen)
    assert done.returncode == 0, done.stdout + done.stderr
    # The situations need a control command.
    assert "1 passed, 2 skipped" in done.stdout


def test_the_suite_finds_a_missing_workload_api(python: Path, tmp_path: Path) -> None:
    done = _suite(python, "--workload-socket", f"unix://{tmp_path}/none.sock", "-k", "X5_15")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "FileNotFoundError" in done.stdout


def test_the_suite_asks_for_a_workload_api(python: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPIFFE_ENDPOINT_SOCKET", raising=False)
    done = _suite(python)
    assert done.returncode == 4  # pytest's usage error
    assert "--workload-socket URI" in done.stderr
    done = _suite(python, "--workload-socket", "/run/agent.sock")
    assert done.returncode == 4
    assert "'/run/agent.sock' is neither unix:///absolute/path nor tcp://IP:PORT" in done.stderr


def test_the_environment_of_the_suite_has_no_vouchd(python: Path) -> None:
    for module in ("agent", "attestors", "tests", "grpc"):
        done = _run(python, "-I", "-c", f"import {module}")
        assert f"No module named '{module}'" in done.stderr


def test_the_installed_suite_is_the_one_of_this_checkout(python: Path) -> None:
    """Packaging leaves out no file: the reader of a failure finds the requirements, too."""
    find = "import workload_api_conformance as suite; print(suite.__path__[0])"
    installed = Path(_run(python, "-I", "-c", find).stdout.strip())
    names = [str(path.relative_to(SUITE)) for path in SUITE.rglob("*.*") if path.suffix != ".pyc"]
    same, different, missing = filecmp.cmpfiles(SUITE, installed, names, shallow=False)
    assert same
    assert not [*different, *missing], "run make conformance-suite"


def test_the_suite_imports_only_what_its_project_file_names() -> None:
    imported = set()
    for path in SUITE.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(str(node.module).split(".")[0])
    others = imported - sys.stdlib_module_names
    assert others == {"cryptography", "google", "h2", "jwt", "pytest"}


def test_the_protocol_of_the_suite_is_the_one_that_vouchd_serves() -> None:
    """Comments differ; names, numbers and types on the wire do not."""
    ours = (REPOSITORY / "proto/workloadapi.proto").read_text()
    theirs = (PROJECT / "proto/workload.proto").read_text()
    assert _declarations(ours) == _declarations(theirs)


def _declarations(proto: str) -> list[str]:
    return re.sub(r"//[^\n]*", "", proto).split()


def test_each_requirement_of_a_client_or_validator_has_a_test_of_vouchd() -> None:
    rows = re.findall(
        r"^\| ([A-Z][A-Z0-9]-\d\d) \| [^|]+ \| [^|]+ \| (\w+) \|",
        (SUITE / "requirements.md").read_text(),
        re.MULTILINE,
    )
    trees = [ast.parse(path.read_text()) for path in Path(__file__).parent.glob("test_*.py")]
    names = [n.name for tree in trees for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
    tested = [f"{found[1]}-{found[2]}" for name in names if (found := _ID.fullmatch(name))]
    assert {name for name, where in rows if where == "library"} <= set(tested)
    assert set(tested) <= {name for name, _ in rows}
    assert len(set(tested)) == len(tested)
