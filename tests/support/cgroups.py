"""Real cgroup directories, in every hierarchy that this machine has (needs root)."""

from __future__ import annotations

import errno
import os
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_ROOT = Path("/sys/fs/cgroup")


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
    """Make this path, and remove afterwards what was made of it.

    Whoever was in there must have been reaped by then.
    """
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
            # An engine removes what lies below its container's.
            if place.exists():
                _remove(place)


def _remove(place: Path) -> None:
    """Remove it as soon as the kernel is done with those who were reaped.

    It is busy (rmdir(2)) for a moment after the last of them. Version 1 has no event for that, and
    cgroup.events of version 2 tells of the last process, not of the last reference.
    """
    patient_until = time.monotonic() + 5
    while True:
        try:
            place.rmdir()
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > patient_until:
                raise
        else:
            return
        time.sleep(0.01)  # noqa: TID251 - rmdir's EBUSY has no event, as told above
