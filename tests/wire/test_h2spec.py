"""h2spec, a conformance tool for HTTP/2 of other authors, against the public socket.

It is built from `tests/wire/h2spec`; Go keeps the result in its own cache.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from tests.support.bridge import bridge
from tests.wire.conftest import Server

MODULE = Path(__file__).parent / "h2spec"
CASES = 146
"""All cases of version 2.2.1: 145, and one that its option --strict adds."""

pytestmark = pytest.mark.system


@pytest.fixture(scope="session")
def h2spec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("h2spec") / "h2spec"
    package = "github.com/summerwind/h2spec/cmd/h2spec"
    build = ["go", "build", "-mod=readonly", "-buildvcs=false", "-o", str(program), package]
    built = subprocess.run(
        build,
        cwd=MODULE,
        env={**os.environ, "GOTOOLCHAIN": "local"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    return program


def test_h2spec_finds_nothing(vouchd: Server, h2spec: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    with bridge(vouchd.path) as port:
        done = subprocess.run(
            [h2spec, "--strict", "--port", str(port), "--junit-report", report],
            capture_output=True,
            text=True,
            check=False,
        )
    cases = ET.parse(report).getroot().findall(".//testcase")  # noqa: S314 - of our own program
    not_passed = [case.attrib for case in cases if len(case)]
    assert not not_passed, done.stdout
    assert len(cases) == CASES
