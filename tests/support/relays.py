"""What a relay reads where nobody looks at it."""

from __future__ import annotations

import socket
from collections.abc import Callable

from agent.transport.relay import CHUNK_BYTES


def read_from(sock: socket.socket) -> Callable[[], bytes | None]:
    """Reads as recv(2) does, and lets all pass."""
    return lambda: sock.recv(CHUNK_BYTES) or None
