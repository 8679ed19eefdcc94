"""A process with only a cgroup and a start time (attestors.api.WorkloadRef)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import os

# After the start of every process of these tests.
LATE = 1 << 50


@dataclass
class Workload:
    """A process with a readable cgroup and start time; each other read is an AssertionError."""

    cgroup: bytes
    started: int = LATE
    reads: list[str] = field(default_factory=list)
    pid: int = 4711
    uid: int = 1000
    gid: int = 1000
    groups: tuple[int, ...] = ()
    pidfd: int = -1
    error: OSError | None = None
    """The error that each read raises, if any."""

    def read(self, name: str, limit: int = 1 << 20) -> bytes:
        self.reads.append(name)
        if self.error is not None:
            raise self.error
        content = {
            "cgroup": self.cgroup,
            "stat": f"4711 (a) b) c) S {'0 ' * 18}{self.started} 0 0".encode(),
        }
        return content[name][:limit]

    def readlink(self, name: str) -> str:
        raise AssertionError(f"the attestor reads /proc/PID/{name}")

    def stat(self, name: str) -> os.stat_result:
        raise AssertionError(f"the attestor reads /proc/PID/{name}")

    def open(self, name: str) -> int:
        raise AssertionError(f"the attestor reads /proc/PID/{name}")
