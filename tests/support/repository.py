"""Git commands in a repository of the test."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def git(directory: Path, *command: str) -> None:
    """Run a Git command in a directory, with an author's name and address."""
    options = ("-c", "user.name=x", "-c", "user.email=x@example.org")
    subprocess.run(["git", "-C", directory, *options, *command], check=True, capture_output=True)
