"""The gate owns the open connections: it accepts, identifies and relays them to the gRPC server.

grpcio does not expose the accepted socket, so the gate accepts, and relays the bytes. For each
connection it opens one to the server's private inner socket, bound to a random abstract name (the
token). grpcio reports this name as the peer of every call, and the gate's table maps it to the
caller. The token is a key, not a proof: an unknown token is refused, and a token ends with its
connection.

A connection over its quota is closed at once; gRPC clients report UNAVAILABLE. The other
connections are read in the order of the fair queue. The gate closes the caller's pidfd when its
connection ends.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING

from agent.errors import PeerError, PeerGoneError
from agent.gate.acceptor import Acceptor
from agent.gate.disconnects import DisconnectLog
from agent.limits.lockout import Lockout
from agent.signals import NO_SIGNALS, Stage, Stopwatch
from agent.transport.challenge import Challenge
from agent.transport.connection import Connection, ConnectionToken

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Collection, Coroutine, Mapping

    from structlog.typing import FilteringBoundLogger

    from agent.gate.admission import Admission
    from agent.kernel.caller import Caller
    from agent.signals import Signals


class Gate:
    """Accepts connections and relays them to the server behind `inner_path`.

    A connection must send its first request within `first_request_seconds`.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        inner_path: str,
        admission: Admission,
        log: FilteringBoundLogger,
        first_request_seconds: float,
        signals: Signals = NO_SIGNALS,
    ) -> None:
        self._loop = loop
        self._inner_path = inner_path
        self.admission = admission
        self._log = log
        self._first_request_seconds = first_request_seconds
        self._signals = signals
        self._connections: dict[ConnectionToken, Connection] = {}
        self._of_caller: dict[Caller, Connection] = {}
        self._weaknesses: Counter[str] = Counter()
        self._drained = asyncio.Event()
        self._lockout: Lockout | None = None
        self._disconnects = DisconnectLog(admission.note_refusal, log, signals, loop.time)
        self._acceptor = Acceptor(loop, self._admit, lambda: len(self), log, signals)

    def __len__(self) -> int:
        """The number of open connections."""
        return len(self._connections)

    def processes(self) -> int:
        """Count the processes that have open connections, as far as the kernel names them."""
        return len({caller.process.name for caller in self._of_caller})

    @property
    def accepts(self) -> bool:
        """Whether new connections are accepted."""
        return self._acceptor.accepts

    @property
    def weaknesses(self) -> Mapping[str, int]:
        """The number of connections so far with each of `Caller.weaknesses`."""
        return self._weaknesses

    @property
    def locked_out(self) -> Collection[int]:
        """The users that are locked out of the socket now."""
        return () if self._lockout is None else self._lockout.users

    def start(self, listener: socket.socket, *, locks_out: bool = False) -> None:
        """Start accepting. The listener must have SO_PASSCRED set (agent.kernel.sender).

        With `locks_out` a user whose processes connect and hang up without end is locked out of
        the socket (agent.limits.lockout).
        """
        if locks_out:
            self._lockout = Lockout(self._loop, listener.getsockname(), self._log, self._signals)
        self._acceptor.start(listener, self._lockout.hung_up if self._lockout else _ignore_hang_ups)

    def stop_accepting(self) -> None:
        """Stop accepting. Open connections continue."""
        self._acceptor.stop()
        if self._lockout is not None:
            self._lockout.close()
            self._lockout = None

    async def go_away(self, seconds: float) -> None:
        """Stop accepting, send GOAWAY to all clients, and wait for calls that were on their way.

        After a GOAWAY a client makes its next calls on another connection, without an error. A
        connection that just ends does not guarantee that. The wait ends when each call has had its
        first response, or after `seconds`.
        """
        self.stop_accepting()
        await self._all(Challenge.go_away, seconds)

    async def wait_for_calls(self, seconds: float) -> None:
        """Wait until no call is open, at most so many seconds."""
        await self._all(Challenge.wait_for_calls, seconds)

    async def _all(
        self, wait: Callable[[Challenge], Coroutine[None, None, None]], seconds: float
    ) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds), asyncio.TaskGroup() as tasks:
                for connection in self._connections.values():
                    tasks.create_task(wait(connection.challenge))

    async def drain(self, seconds: float) -> None:
        """Wait until the clients have closed all connections, at most so many seconds."""
        self._drained.clear()
        if self._connections:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._drained.wait()

    def close(self) -> None:
        """Close every connection."""
        self.stop_accepting()
        for connection in list(self._connections.values()):
            connection.end("agent stopped")
        for weakness, count in self._weaknesses.items():
            self._log.info("connections with weak proof", count=count, weaknesses=[weakness])

    async def prove_sender(self, caller: Caller) -> None:
        """Return when the caller's process has answered a new PING on its connection.

        Raises:
            PeerGoneError: the connection has ended.
            UnansweredError: there is no answer.
        """
        connection = self._of_caller.get(caller)
        if connection is None:
            raise PeerGoneError("the connection ended")
        with Stopwatch(self._signals, Stage.CHALLENGE):
            await connection.challenge.prove()

    def begin_call(self, peer: str) -> Caller:
        """Count a call of this gRPC peer, and return its caller.

        Raises:
            PeerError: the peer is no open connection, or the kernel could not name its process.
        """
        connection = self._connection(peer)
        connection.begin_call()
        return connection.caller

    def caller(self, peer: str) -> Caller:
        """Return the caller of this gRPC peer.

        Raises:
            PeerError: the peer is no open connection, or the kernel could not name its process.
        """
        return self._connection(peer).caller

    def _connection(self, peer: str) -> Connection:
        connection = self._connections.get(ConnectionToken(peer.removeprefix("unix-abstract:")))
        if connection is None:
            raise PeerError("the connection did not come through the public socket")
        return connection

    # --- the life of a connection -----------------------------------------------------------------

    def _admit(self, outer: socket.socket) -> None:
        with Stopwatch(self._signals, Stage.ACCEPT):
            admitted = None
            try:
                admitted = self.admission.admit(outer, self._loop.time())
            finally:
                if admitted is None:
                    outer.close()
            if admitted is not None:
                self._start(
                    Connection(
                        self._loop,
                        outer,
                        admitted,
                        self.admission.quotas,
                        self.admission.call_bytes,
                        self._on_end,
                    )
                )

    def _start(self, connection: Connection) -> None:
        self._connections[connection.token] = connection
        caller = connection.admitted.caller
        if not isinstance(caller, PeerError):
            self._of_caller[caller] = connection
            self._note_weaknesses(caller)
        try:
            connection.start(self._inner_path, self._first_request_seconds)
        except OSError as error:
            connection.end(f"agent cannot watch it ({error.strerror})")
            raise

    def _note_weaknesses(self, caller: Caller) -> None:
        """Count each weakness, and warn of the first connection that has it."""
        for weakness in caller.weaknesses:
            self._weaknesses[weakness] += 1
            if self._weaknesses[weakness] == 1:
                self._log.warning(
                    "caller proof is weak", proof=str(caller.proof), weaknesses=[weakness]
                )

    def _on_end(self, connection: Connection, reason: str | PeerError) -> None:
        del self._connections[connection.token]
        if not self._connections:
            self._drained.set()
        if not isinstance(connection.admitted.caller, PeerError):
            del self._of_caller[connection.admitted.caller]
        self.admission.release(connection.admitted)
        self._disconnects.note(connection, reason)


def _ignore_hang_ups(_uid: int, _times: int) -> None:
    """Take the hung-up connections of a user where no lockout is wanted."""
