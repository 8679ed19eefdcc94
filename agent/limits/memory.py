"""The memory that one user can make the agent hold, computed from the limits.

Bytes of requests, of large header blocks and of unread responses are counted in a quota. What is
not counted has a bounded size for each connection and for each call. The kernel's socket buffers
are not part of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agent.limits.quotas import Limits

# Measured by tests/agent/test_memory.py: the objects of a connection, a full HPACK table of the
# smallest fields (RFC 7541 section 4.1: 4,096 bytes, at least 32 for each), and the part of a frame
# that is too small to count.
CONNECTION_BYTES = 24 * 1024
# The objects of a call, its task, its place among the open streams, and a usual header block.
CALL_BYTES = 12 * 1024


def most_bytes_of_one_user(limits: Limits) -> int:
    """Return the bytes that the connections and calls of one user, or one cgroup, can take."""
    calls = limits.streams_per_user + limits.attestations_per_user
    return (
        limits.connections_per_user * CONNECTION_BYTES
        + calls * CALL_BYTES
        + limits.buffer_bytes_per_user
    )
