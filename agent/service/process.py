"""What the agent asks of the kernel for its own process, before it does anything else."""

from __future__ import annotations

import ctypes
import faulthandler
import resource
from typing import TYPE_CHECKING

from agent.errors import StartupError

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

DESCRIPTORS_PER_CONNECTION = 4
OWN_DESCRIPTORS = 200

# gRPC crashes when it gets no descriptor, or no thread, while it starts. An idle agent has thirty
# descriptors and some hundred MiB of addresses.
MIN_DESCRIPTORS = 64
MIN_ADDRESS_SPACE = 1 << 30

_PR_SET_DUMPABLE = 4


def prepare_process(connections: int, log: FilteringBoundLogger) -> None:
    """Keep memory private, have room for so many connections, and say where a loop is stuck.

    Raises:
        StartupError: there are too few descriptors or addresses to begin with.
    """
    # On the watchdog's SIGABRT: files and line numbers, no values.
    faulthandler.enable()
    _keep_memory_private()
    _raise_descriptor_limit(connections, log)
    _require_address_space()


def _keep_memory_private() -> None:
    """Keys are here: no core dumps, and no ptrace by others of the same user (prctl(2))."""
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def _raise_descriptor_limit(connections: int, log: FilteringBoundLogger) -> None:
    """The soft limit is meant for programs with select(2)."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < MIN_DESCRIPTORS:
        raise StartupError(
            f"only {hard} open files are allowed, and the agent needs {MIN_DESCRIPTORS} at least: "
            "raise LimitNOFILE= in its unit, or ulimit -n"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    wanted = connections * DESCRIPTORS_PER_CONNECTION + OWN_DESCRIPTORS
    if hard < wanted:
        log.warning(
            "fewer descriptors than limits.connections may need: raise LimitNOFILE, or lower it",
            descriptors=hard,
            needed=wanted,
        )


def _require_address_space() -> None:
    """Refuse a limit of addresses that gRPC, which reserves many, aborts at."""
    limit, _hard = resource.getrlimit(resource.RLIMIT_AS)
    if 0 <= limit < MIN_ADDRESS_SPACE:
        raise StartupError(
            f"the address space is limited to {limit >> 20} MiB, and {MIN_ADDRESS_SPACE >> 20} are "
            "reserved, though hardly used: limit memory by MemoryMax= instead of LimitAS= or ulimit"
        )
