"""A process that is nothing but its cgroup and its start (attestors.api.WorkloadRef)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import os

# Long after any process of these tests was started.
LATE = 1 << 50


@dataclass
class Workload:
    """A process of which only the cgroup and the start matter; to read anything else is wrong."""

    cgroup: bytes
    started: int = LATE
    reads: list[str] = field(default_factory=list)
    pid: int = 4711
    uid: int = 1000
    gid: int = 1000
    groups: tuple[int, ...] = ()
    pidfd: int = -1

    def read(self, name: str, limit: int = 1 << 20) -> bytes:
        self.reads.append(name)
        content = {
            "cgroup": self.cgroup,
            "stat": f"4711 (a) b) c) S {'0 ' * 18}{self.started} 0 0".encode(),
        }
        return content[name][:limit]

    def readlink(self, name: str) -> str:
        raise AssertionError(f"what is /proc/PID/{name} to this attestor?")

    def stat(self, name: str) -> os.stat_result:
        raise AssertionError(f"what is /proc/PID/{name} to this attestor?")

    def open(self, name: str) -> int:
        raise AssertionError(f"what is /proc/PID/{name} to this attestor?")
