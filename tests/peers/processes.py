"""What the processes of a service cost: CPU time, memory and descriptors, read from /proc.

A service is a process and its descendants: an agent may have helpers, and they count.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

PROC = Path("/proc")


def family(root: int, parents: Mapping[int, int]) -> list[int]:
    """Return the PIDs of a process and its descendants; `parents` has each process's parent."""
    children: defaultdict[int, list[int]] = defaultdict(list)
    for pid, parent in parents.items():
        children[parent].append(pid)
    found = [root]
    for pid in found:
        found += children[pid]
    return found


def parent_in(stat: str) -> int:
    """Return the parent's PID in the text of /proc/PID/stat (proc(5)).

    The second field is the command's name in parentheses, which may hold blanks and parentheses.
    """
    return int(stat.rpartition(")")[2].split()[1])


def kib_in(text: str, name: str) -> int:
    """Return the value of a line `name:  123 kB`, as /proc/PID/smaps_rollup has them.

    Raises:
        ValueError: there is no such line.
    """
    for line in text.splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise ValueError(f"no line {name!r}: {text!r}")


def parents() -> dict[int, int]:
    """Return the parent of each process of the machine."""
    found = {}
    for folder in PROC.iterdir():
        if folder.name.isdecimal():
            with suppress(OSError):  # the process has ended
                found[int(folder.name)] = parent_in((folder / "stat").read_text(errors="replace"))
    return found


def cpu_seconds(pids: Iterable[int]) -> float:
    """Return the user and system time of all threads of the processes.

    The clock of clock_getcpuclockid(3): what /proc/PID/stat has in hundredths of a second, in
    nanoseconds.
    """
    return sum(time.clock_gettime_ns((~pid << 3) | 2) for pid in pids) / 1e9


def pss_kib(pids: Iterable[int]) -> int:
    """Return the proportional set size of the processes: a page that n processes map counts 1/n.

    Raises:
        PermissionError: the process hides its memory from this user (prctl(2), PR_SET_DUMPABLE).
    """
    return sum(kib_in((PROC / f"{pid}/smaps_rollup").read_text(), "Pss") for pid in pids)


def descriptors(pids: Iterable[int]) -> int:
    """Return the number of open descriptors of the processes."""
    return sum(len(list((PROC / f"{pid}/fd").iterdir())) for pid in pids)
