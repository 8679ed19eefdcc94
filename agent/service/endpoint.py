"""A listening socket with its gate and services: start, and a stop that costs clients no call.

The stop, in this order:

1. accept no further connection. A socket of the service manager keeps new clients in the kernel's
   queue for the next agent; a socket of our own is removed;
2. tell clients to open another connection (GOAWAY), and answer each call that has arrived;
3. end streams with UNAVAILABLE and a hint when to retry, and send what clients have not yet read;
4. close the connections that clients have not closed.

A stream that ended while the agent still accepted would make its client reconnect in a tight loop.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from agent.gate.gate import Gate
    from agent.transport.service import Services

# The longest waits for the first responses, for the ends of streams, and for the last bytes.
TURN_AWAY_SECONDS = 2.0
QUIET_SECONDS = 1.0
DRAIN_SECONDS = 1.0


class Listening(Protocol):
    """A listening socket whose peers' credentials come with each chunk (agent.kernel.sender)."""

    socket: socket.socket

    def close(self) -> None:
        """Stop listening."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Owns the listener and the connections that it accepts.

    `end_streams` makes open streams end. `locks_out`: see Gate.start.
    """

    gate: Gate
    services: Services
    listener: Listening
    end_streams: Callable[[], None] = lambda: None
    locks_out: bool = False

    def open(self) -> None:
        """Start to serve."""
        self.gate.start(self.listener.socket, self.services, locks_out=self.locks_out)

    async def close(self) -> None:
        """Stop, in the order of the module's docstring."""
        self.gate.stop_accepting()
        self.listener.close()
        await self.gate.go_away(TURN_AWAY_SECONDS)
        self.end_streams()
        await self.gate.wait_for_calls(QUIET_SECONDS)
        await self.gate.drain(DRAIN_SECONDS)
        self.gate.close()
