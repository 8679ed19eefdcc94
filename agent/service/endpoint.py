"""A gate with the server behind it: opened last, and closed so that clients hardly notice.

At stop, in this order:

1. nobody is accepted any more. Behind a socket that the service manager holds, who connects waits
   in the kernel's queue for the next agent; a socket of our own goes away;
2. clients are told to make their next calls elsewhere, and each call that has come gets its first
   response. Whoever just connected, asks once and leaves sees nothing of the stop;
3. streams end with UNAVAILABLE and a hint when to come again;
4. what is still open is cut.

Clients that see their stream end while the agent still accepts would reconnect in a tight loop.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    import grpc

    from agent.gate.gate import Gate

# How long first responses, ends of streams, and the last bytes may take: each, at most.
TURN_AWAY_SECONDS = 2.0
QUIET_SECONDS = 1.0
DRAIN_SECONDS = 1.0


class Listening(Protocol):
    """A listening socket whose senders are stamped (agent.kernel.sender)."""

    socket: socket.socket

    def close(self) -> None:
        """Listen no more."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Owns the listener and what comes through it. `end_streams` has streams end, if there are.

    `locks_out`: see Gate.start.
    """

    gate: Gate
    server: grpc.aio.Server
    listener: Listening
    end_streams: Callable[[], None] = lambda: None
    locks_out: bool = False

    async def open(self) -> None:
        """Begin to serve."""
        await self.server.start()
        self.gate.start(self.listener.socket, locks_out=self.locks_out)

    async def close(self) -> None:
        """Stop, as told above."""
        self.gate.stop_accepting()
        self.listener.close()
        await self.gate.go_away(TURN_AWAY_SECONDS)
        self.end_streams()
        await self.gate.wait_for_calls(QUIET_SECONDS)
        await self.server.stop(grace=None)
        await self.gate.drain(DRAIN_SECONDS)
        self.gate.close()
