"""The gate owns the open connections: it accepts, identifies and serves them.

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
from agent.transport.connection import CONNECTION_TIMES, Connection, ConnectionTimes, Serving
from agent.transport.http2_server import Http2Server
from agent.transport.poller import Poller

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Collection, Coroutine, Mapping

    from structlog.typing import FilteringBoundLogger

    from agent.gate.admission import Admission
    from agent.kernel.caller import Caller
    from agent.signals import Signals
    from agent.transport.half import Half
    from agent.transport.service import Services


class Gate:
    """Accepts connections, and serves methods on them.

    Args:
        loop: the event loop.
        admission: admits connections within the quotas.
        log: gets a line for connections that ended without a call.
        signals: get refusals and durations.
        times: how long clients may take.
        make_half: makes the HTTP/2 half of a connection.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        admission: Admission,
        log: FilteringBoundLogger,
        signals: Signals = NO_SIGNALS,
        times: ConnectionTimes = CONNECTION_TIMES,
        make_half: Callable[[], Half] = Http2Server,
    ) -> None:
        self._loop = loop
        self.admission = admission
        self._log = log
        self._signals = signals
        self._times = times
        self._make_half = make_half
        self._serving: Serving | None = None
        self._connections: set[Connection] = set()
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

    def start(
        self, listener: socket.socket, services: Services, *, locks_out: bool = False
    ) -> None:
        """Start accepting. The listener must have SO_PASSCRED set (agent.kernel.sender).

        With `locks_out` a user whose processes connect and hang up without end is locked out of
        the socket (agent.limits.lockout).
        """
        self._serving = Serving(
            loop=self._loop,
            poller=Poller(self._loop),
            services=services,
            quotas=self.admission.quotas,
            make_half=self._make_half,
            times=self._times,
        )
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
        await self._all(Connection.go_away, seconds)

    async def wait_for_calls(self, seconds: float) -> None:
        """Wait until no call is open and all responses are sent, at most so many seconds."""
        await self._all(Connection.wait_for_calls, seconds)

    async def _all(
        self, wait: Callable[[Connection], Coroutine[None, None, None]], seconds: float
    ) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds), asyncio.TaskGroup() as tasks:
                for connection in self._connections:
                    tasks.create_task(wait(connection))

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
        for connection in tuple(self._connections):
            connection.end("agent stopped")
        if self._serving is not None:
            self._serving.poller.close()
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
            await connection.prove()

    # --- the life of a connection -----------------------------------------------------------------

    def _admit(self, sock: socket.socket) -> None:
        with Stopwatch(self._signals, Stage.ACCEPT):
            admitted = None
            try:
                admitted = self.admission.admit(sock, self._loop.time())
            finally:
                if admitted is None:
                    sock.close()
        if admitted is not None and self._serving is not None:
            self._start(Connection(self._serving, sock, admitted, self._on_end))

    def _start(self, connection: Connection) -> None:
        self._connections.add(connection)
        caller = connection.admitted.caller
        if not isinstance(caller, PeerError):
            self._of_caller[caller] = connection
            self._note_weaknesses(caller)
        try:
            connection.start()
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
        self._connections.remove(connection)
        if not self._connections:
            self._drained.set()
        if not isinstance(connection.admitted.caller, PeerError):
            del self._of_caller[connection.admitted.caller]
        self.admission.release(connection.admitted)
        self._disconnects.note(connection, reason)


def _ignore_hang_ups(_uid: int, _times: int) -> None:
    """Take the hung-up connections of a user where no lockout is wanted."""
