"""A third-party package with an attestor, installed by pip from a wheel."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_WHEEL = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def install(directory: Path, module: str, code: str, points: Mapping[str, str]) -> Path:
    """Install a package of one module outside this checkout; return the folder for PYTHONPATH.

    `points` are the package's entry points in the group `vouchd.attestors`.
    """
    wheel = directory / f"{module}-1.0-py3-none-any.whl"
    lines = [f"{name} = {place}\n" for name, place in points.items()]
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"{module}.py", code)
        for name, content in [
            ("METADATA", f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n"),
            ("WHEEL", _WHEEL),
            ("entry_points.txt", "".join(["[vouchd.attestors]\n", *lines])),
            ("RECORD", ""),
        ]:
            archive.writestr(f"{module}-1.0.dist-info/{name}", content)
    target = directory / "site"
    quiet = ["-q", "--disable-pip-version-check", "--no-index", "--no-deps"]
    subprocess.run(
        [sys.executable, "-m", "pip", "install", *quiet, "--target", target, wheel], check=True
    )
    return target
