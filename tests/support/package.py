"""The Debian package of this checkout, made when it is needed and kept until it would differ."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from typing import TYPE_CHECKING

from tests.support.agent import REPOSITORY
from tests.support.machine import CACHE

if TYPE_CHECKING:
    from pathlib import Path

_INGREDIENTS = (
    "pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE", ".ci/constraints.txt",
    "agent", "attestors", "config", "deploy/debian", "deploy/systemd",
)  # fmt: skip


def built() -> Path:
    """The package file."""
    place = CACHE / f"package-{_digest()}"
    if not place.exists():
        for former in CACHE.glob("package-*"):
            shutil.rmtree(former)
        fresh = place.with_name(f".{place.name}")
        command = [REPOSITORY / "deploy/debian/build", fresh]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        fresh.rename(place)
    [package] = place.iterdir()
    return package


def _digest() -> str:
    digest = hashlib.sha256()
    tops = [REPOSITORY / name for name in _INGREDIENTS]
    for file in sorted(file for top in tops for file in (top, *top.rglob("*")) if file.is_file()):
        if "__pycache__" not in file.parts:
            digest.update(f"{file} {file.stat().st_mode} {file.stat().st_size}\0".encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]
