"""`make` says what it can do, and deletes no key unasked."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

from tests.support.agent import REPOSITORY

MAKEFILE = (REPOSITORY / "Makefile").read_text()


def _run(
    *command: str, cwd: Path = REPOSITORY, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    if env is None:  # a make above this one would have its say in the output
        env = {k: v for k, v in os.environ.items() if k not in {"MAKEFLAGS", "MAKELEVEL", "MFLAGS"}}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)


def test_help_lists_each_target_with_one_line() -> None:
    listed = _run("make", "help").stdout
    assert _run("make").stdout == listed, "help is the default target"
    targets = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
    assert targets == set(re.findall(r"^make ([a-z-]+) +\S", listed, re.MULTILINE))
    assert len(listed.splitlines()) == len(targets)


def test_demo_and_run_install_no_developer_tools(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", ".ci/constraints.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(REPOSITORY / name, tmp_path / name)
    for target, packages in {"demo": "'.[demo]'", "run": "."}.items():
        commands = _run("make", "--dry-run", target, cwd=tmp_path).stdout
        assert re.findall(r"pip install .* -e (\S+)", commands) == [packages]
        assert "-qq" not in commands, "pip's output is the progress"
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    names = {re.split(r"[>=]", each)[0] for each in extras["optional-dependencies"]["demo"]}
    assert names == {"spiffe", "spiffe-tls"}


def test_clean_keeps_the_authority_and_clean_state_deletes_it(tmp_path: Path) -> None:
    shutil.copy(REPOSITORY / "Makefile", tmp_path)
    authority = tmp_path / ".run/data/authority.json"
    authority.parent.mkdir(parents=True)
    authority.touch()
    (tmp_path / ".venv").mkdir()
    (tmp_path / "tests/conformance").mkdir(parents=True)
    assert _run("make", "clean", cwd=tmp_path).returncode == 0
    assert not (tmp_path / ".venv").exists()
    assert authority.exists()
    assert _run("make", "clean-state", cwd=tmp_path).returncode == 0
    assert not (tmp_path / ".run").exists()


def test_missing_system_packages_are_one_line_with_the_way_out(tmp_path: Path) -> None:
    script = REPOSITORY / ".ci/system-packages"
    # A `command` of the shell finds nothing in an empty folder.
    done = _run("/bin/sh", str(script), "check", env={"PATH": str(tmp_path), "SBIN": str(tmp_path)})
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert " podman " in line
    assert " valgrind " in line
    assert line.endswith("(sudo make system-packages)")


def test_system_tests_check_their_packages_first() -> None:
    script = (REPOSITORY / ".ci/test-system").read_text()
    assert script.index(".ci/system-packages check") < script.index("pytest")
    assert "make system-packages" in (REPOSITORY / ".ci/run").read_text()
