"""The limits and protections of the agent's own process, set before anything else starts."""

from __future__ import annotations

import ctypes
import faulthandler
import resource
from typing import TYPE_CHECKING

from agent.attestation.kept import DESCRIPTORS_OF_EACH, KEPT_CALLERS
from agent.errors import StartupError

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

# The socket and the pidfd; an attestation opens some more for a moment.
DESCRIPTORS_PER_CONNECTION = 2
OWN_DESCRIPTORS = 200 + KEPT_CALLERS * DESCRIPTORS_OF_EACH

# gRPC aborts when it gets no descriptor or no thread while it starts. An idle agent has thirty
# descriptors and some hundred MiB of address space.
MIN_DESCRIPTORS = 64
MIN_ADDRESS_SPACE = 1 << 30

_PR_SET_DUMPABLE = 4


def prepare_process(connections: int, log: FilteringBoundLogger) -> None:
    """Protect memory, raise the descriptor limit for so many connections, dump stacks on SIGABRT.

    Raises:
        StartupError: the limits on descriptors or address space are too low to start.
    """
    # The watchdog sends SIGABRT: the dump has files and line numbers, no values.
    faulthandler.enable()
    _forbid_dumps()
    _raise_descriptor_limit(connections, log)
    _require_address_space()


def _forbid_dumps() -> None:
    """Forbid core dumps and ptrace by processes of the same user: memory holds keys (prctl(2))."""
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def _raise_descriptor_limit(connections: int, log: FilteringBoundLogger) -> None:
    """Raise the soft limit to the hard one. The soft limit protects programs with select(2)."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < MIN_DESCRIPTORS:
        raise StartupError(
            f"only {hard} open files are allowed, and the agent needs {MIN_DESCRIPTORS} at least: "
            "raise LimitNOFILE= in its unit, or ulimit -n"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    needed = connections * DESCRIPTORS_PER_CONNECTION + OWN_DESCRIPTORS
    if hard < needed:
        log.warning(
            "descriptor limit is too low",
            descriptors=hard,
            needed=needed,
            advice="raise LimitNOFILE= in the unit, or lower limits.connections",
        )


def _require_address_space() -> None:
    """Refuse a limit under which gRPC, which reserves much address space, aborts."""
    limit, _hard = resource.getrlimit(resource.RLIMIT_AS)
    if 0 <= limit < MIN_ADDRESS_SPACE:
        raise StartupError(
            f"the address space is limited to {limit >> 20} MiB, and {MIN_ADDRESS_SPACE >> 20} are "
            "reserved, though hardly used: limit memory by MemoryMax= instead of LimitAS= or ulimit"
        )
