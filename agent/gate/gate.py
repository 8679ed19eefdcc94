"""The gate: accepts every connection, asks the kernel who it is, and relays it to the gRPC server.

grpcio does not expose the accepted socket, so the gate owns accept and the bytes. It connects each
caller to the server's private inner socket from a socket bound to a random abstract name. That name
comes out as the peer of every RPC, and the gate's table says which caller it stands for. The name
is a key, not a proof: an unknown name is refused, and a name dies with its connection.

One that is too many is closed at once, which gRPC's clients take for UNAVAILABLE; the others have
their turn to be read. The gate closes each caller's pidfd at the end of its connection.
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
from agent.signals import UNHEARD, Stage, Stopwatch
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

    A connection may be silent for `first_request_seconds`.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        inner_path: str,
        admission: Admission,
        log: FilteringBoundLogger,
        first_request_seconds: float,
        signals: Signals = UNHEARD,
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
        """How many connections are open."""
        return len(self._connections)

    def processes(self) -> int:
        """How many different processes these are of, as far as the kernel can name them."""
        return len({caller.process.name for caller in self._of_caller})

    @property
    def accepts(self) -> bool:
        """Whether whoever connects now is served."""
        return self._acceptor.accepts

    @property
    def weaknesses(self) -> Mapping[str, int]:
        """How many connections so far had each of `Caller.weaknesses`."""
        return self._weaknesses

    @property
    def locked_out(self) -> Collection[int]:
        """The users whom the socket refuses just now."""
        return () if self._lockout is None else self._lockout.users

    def start(self, listener: socket.socket, *, locks_out: bool = False) -> None:
        """Begin to accept. The listener must have its senders stamped (agent.kernel.sender).

        `locks_out`: who connects and hangs up without end is kept out (agent.limits.lockout).
        """
        if locks_out:
            self._lockout = Lockout(self._loop, listener.getsockname(), self._log, self._signals)
        self._acceptor.start(listener, self._lockout.hung_up if self._lockout else _nobody_cares)

    def stop_accepting(self) -> None:
        """Accept no more; what is open goes on."""
        self._acceptor.stop()
        if self._lockout is not None:
            self._lockout.close()
            self._lockout = None

    async def turn_away(self, seconds: float) -> None:
        """Accept no more, and wait until each call that has come has had its first response.

        Meanwhile clients are told to make their next calls on other connections. They do so without
        an error, which one whose connection just ends cannot be sure of. At most so many seconds.
        """
        self.stop_accepting()
        await self._all(Challenge.turn_away, seconds)

    async def quiet(self, seconds: float) -> None:
        """Wait until no call is under way, at most so many seconds."""
        await self._all(Challenge.quiet, seconds)

    async def _all(
        self, wait: Callable[[Challenge], Coroutine[None, None, None]], seconds: float
    ) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds), asyncio.TaskGroup() as tasks:
                for connection in self._connections.values():
                    tasks.create_task(wait(connection.challenge))

    async def drain(self, seconds: float) -> None:
        """Wait until all connections have ended by themselves, at most so long."""
        self._drained.clear()
        if self._connections:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._drained.wait()

    def close(self) -> None:
        """Cut every connection."""
        self.stop_accepting()
        for connection in list(self._connections.values()):
            connection.end("agent stopped")
        for weakness, count in self._weaknesses.items():
            self._log.info("callers with weaker proof", count=count, weakness=weakness)

    async def prove_sender(self, caller: Caller) -> None:
        """Return when the caller's own process has answered on its connection, just now.

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
        """The caller behind a gRPC peer name, who has made a call.

        Raises:
            PeerError: the name stands for no open connection, or for a process that the kernel
                could not name.
        """
        connection = self._connection(peer)
        connection.begin_call()
        return connection.caller

    def caller(self, peer: str) -> Caller:
        """The caller behind a gRPC peer name.

        Raises:
            PeerError: as above.
        """
        return self._connection(peer).caller

    def _connection(self, peer: str) -> Connection:
        connection = self._connections.get(ConnectionToken(peer.removeprefix("unix-abstract:")))
        if connection is None:
            raise PeerError("the connection did not come through the public socket")
        return connection

    # --- a connection's life ----------------------------------------------------------------------

    def _admit(self, outer: socket.socket) -> None:
        with Stopwatch(self._signals, Stage.ACCEPT):
            admitted = None
            try:
                admitted = self.admission.enter(outer, self._loop.time())
            finally:
                if admitted is None:
                    outer.close()
            if admitted is not None:
                self._let_in(
                    Connection(
                        self._loop,
                        outer,
                        admitted,
                        self.admission.quotas,
                        self.admission.call_bytes,
                        self._on_end,
                    )
                )

    def _let_in(self, connection: Connection) -> None:
        self._connections[connection.token] = connection
        caller = connection.admitted.caller
        if not isinstance(caller, PeerError):
            self._of_caller[caller] = connection
            self._note_weaknesses(caller)
        try:
            connection.start(self._inner_path, self._first_request_seconds)
        except OSError as error:  # it cannot be watched
            connection.end(f"agent cannot watch it ({error.strerror})")
            raise

    def _note_weaknesses(self, caller: Caller) -> None:
        """One warning for each kind; all are counted, and each caller's record has its own."""
        for weakness in caller.weaknesses:
            self._weaknesses[weakness] += 1
            if self._weaknesses[weakness] == 1:
                self._log.warning("weaker proof", proof=str(caller.proof), weakness=weakness)

    def _on_end(self, connection: Connection, reason: str | PeerError) -> None:
        del self._connections[connection.token]
        if not self._connections:
            self._drained.set()
        if not isinstance(connection.admitted.caller, PeerError):
            del self._of_caller[connection.admitted.caller]
        self.admission.leave(connection.admitted)
        self._disconnects.note(connection, reason)


def _nobody_cares(_uid: int, _times: int) -> None:
    """Connections of this user came to nothing."""
