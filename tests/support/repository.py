"""Git, as an operator uses it."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def git(directory: Path, *command: str) -> None:
    """Run a command in a directory, as somebody."""
    options = ("-c", "user.name=x", "-c", "user.email=x@example.org")
    subprocess.run(["git", "-C", directory, *options, *command], check=True, capture_output=True)
