"""What the agent asks of the kernel for its own process, before it does anything else."""

from __future__ import annotations

import ctypes
import faulthandler
import resource
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

DESCRIPTORS_PER_CONNECTION = 4
OWN_DESCRIPTORS = 200

_PR_SET_DUMPABLE = 4


def prepare_process(connections: int, log: FilteringBoundLogger) -> None:
    """Keep memory private, have room for so many connections, and say where a loop is stuck."""
    # On the watchdog's SIGABRT: files and line numbers, no values.
    faulthandler.enable()
    _keep_memory_private()
    _raise_descriptor_limit(connections, log)


def _keep_memory_private() -> None:
    """Keys are here: no core dumps, and no ptrace by others of the same user (prctl(2))."""
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def _raise_descriptor_limit(connections: int, log: FilteringBoundLogger) -> None:
    """The soft limit is meant for programs with select(2)."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    wanted = connections * DESCRIPTORS_PER_CONNECTION + OWN_DESCRIPTORS
    if hard < wanted:
        log.warning(
            "fewer descriptors than limits.connections may need: raise LimitNOFILE, or lower it",
            descriptors=hard,
            needed=wanted,
        )
