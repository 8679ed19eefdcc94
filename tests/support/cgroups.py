"""Real cgroup directories, in each hierarchy of this machine (needs root)."""

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
    """Return the root of each hierarchy except `cpuset`, which needs settings before use."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    found = [Path(m[1]) for m in mounts if m[2] in ("cgroup", "cgroup2") and "cpuset" not in m[1]]
    return [each for each in found if each.is_relative_to(_ROOT)]


@dataclass(frozen=True, slots=True)
class Directory:
    """One cgroup path in all hierarchies."""

    path: str

    def enter(self) -> None:
        """Move this process into the cgroup."""
        self.take(os.getpid())

    def take(self, pid: int) -> None:
        """Move a process into the cgroup."""
        for root in hierarchies():
            (root / self.path / "cgroup.procs").write_text(str(pid))

    def enter_command(self) -> tuple[str, ...]:
        """Return a command that moves itself into the cgroup and executes its arguments."""
        files = " ".join(str(root / self.path / "cgroup.procs") for root in hierarchies())
        return ("/bin/sh", "-c", f'for f in {files}; do echo $$ > $f; done; exec "$@"', "sh")


@contextmanager
def directory(path: str) -> Iterator[Directory]:
    """Create a cgroup path for the block.

    Its processes must have been reaped at the end of the block.
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
            # An engine removes directories below its container's.
            if place.exists():
                _remove(place)


def _remove(place: Path) -> None:
    """Remove a cgroup directory as soon as the kernel has released its reaped processes.

    rmdir(2) fails with EBUSY for a moment after the last process. Version 1 has no event for the
    release; cgroup.events of version 2 reports the last process, not the last reference.
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
        time.sleep(0.01)  # noqa: TID251 - rmdir's EBUSY has no event, see above
