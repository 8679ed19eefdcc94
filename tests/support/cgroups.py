"""Real cgroup directories, in every hierarchy that this machine has (needs root)."""

from __future__ import annotations

import os
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_ROOT = Path("/sys/fs/cgroup")
# A cgroup is busy until the processes in it have been reaped.
_ATTEMPTS = 200


def hierarchies() -> list[Path]:
    """The root directory of each; not of `cpuset`, which wants to be set up first."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    found = [Path(m[1]) for m in mounts if m[2] in ("cgroup", "cgroup2") and "cpuset" not in m[1]]
    return [each for each in found if each.is_relative_to(_ROOT)]


@dataclass(frozen=True, slots=True)
class Directory:
    """One path in all hierarchies."""

    path: str

    def enter(self) -> None:
        """Move this (child) process there."""
        self.take(os.getpid())

    def take(self, pid: int) -> None:
        """Move a process there."""
        for root in hierarchies():
            (root / self.path / "cgroup.procs").write_text(str(pid))

    def enter_command(self) -> tuple[str, ...]:
        """A command that moves itself there and becomes what its arguments say."""
        files = " ".join(str(root / self.path / "cgroup.procs") for root in hierarchies())
        return ("/bin/sh", "-c", f'for f in {files}; do echo $$ > $f; done; exec "$@"', "sh")


@contextmanager
def directory(path: str) -> Iterator[Directory]:
    """Make this path, and remove afterwards what was made of it, once nobody is in there."""
    made: list[Path] = []
    for root in hierarchies():
        place = root
        for name in Path(path).parts:
            place /= name
            if not place.exists():
                place.mkdir()
                made.append(place)
    try:
        yield Directory(path)
    finally:
        for place in reversed(made):
            _remove(place)


def _remove(place: Path) -> None:
    for _ in range(_ATTEMPTS):
        with suppress(OSError):
            place.rmdir()
        if not place.exists():
            return
        time.sleep(0.01)  # noqa: TID251 - the kernel tells nobody when a cgroup is empty (v1)
    raise AssertionError(f"{place} is busy: {(place / 'cgroup.procs').read_text().split()}")
