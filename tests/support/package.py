"""The Debian package of this checkout, built on demand and cached by its content.

The build is the command of `make deb` in docs/how-to/systemd-service.md.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from typing import TYPE_CHECKING

from tests.support.agent import REPOSITORY
from tests.support.machine import CACHE, debian

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.machine import Machine

_INGREDIENTS = (
    "pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE", ".ci/constraints.txt",
    "agent", "attestors", "config", "docs", "deploy/debian", "deploy/reference", "deploy/systemd",
)  # fmt: skip


def clean_debian() -> Path:
    """Return the root file system of a Debian with the package's dependencies and three shells."""
    return debian("bookworm", "python3", "man-db", "bash-completion", "zsh", "fish")


def install(machine: Machine) -> None:
    """Install the package, or upgrade to it."""
    package = built()
    shutil.copy(package, f"/proc/{machine.init}/root/run/{package.name}")
    # The test cuts no power, so dpkg need not fsync.
    machine.run("dpkg", "--force-unsafe-io", "--install", f"/run/{package.name}")


def built() -> Path:
    """Return the package file; build it if its content has changed."""
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
