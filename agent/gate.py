"""The gate: accepts every connection, asks the kernel who it is, and relays it to the gRPC server.

grpcio does not expose the accepted socket, so the gate owns accept and the bytes. It connects each
caller to the server's private inner socket from a socket bound to a random abstract name. That name
comes out as the peer of every RPC, and the gate's table says which caller it stands for. The name
is a key, not a proof: an unknown name is refused, and a name dies with its connection.

A connection ends when either side ends it, the moment its process exits (the pidfd polls readable),
and at the first byte of anybody else, whoever may still hold the socket. One that is too many is
closed at once, which gRPC's clients take for UNAVAILABLE; the others have their turn to be read.

The gate owns each connection's sockets and its caller's pidfd, and closes them all at its end.
"""

from __future__ import annotations

import asyncio
import errno
import secrets
import socket
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, NewType

from agent.accepting import Acceptor
from agent.admission import OverLimitError
from agent.audit import RefusedConnection, RefusedSender
from agent.challenge import Challenge
from agent.door import has_hung_up
from agent.errors import PeerError, PeerGoneError
from agent.limits import RateLimit
from agent.relay import Relay, Side, read_from
from agent.sender import ForeignSenderError, receive
from agent.signals import UNHEARD, Refused, Stage, Stopwatch

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping

    from structlog.typing import FilteringBoundLogger

    from agent.door import Door, Visitor
    from agent.peer import Caller
    from agent.signals import Signals

ConnectionToken = NewType("ConnectionToken", str)

# How often, and how many times, the inner server is tried again while it cannot be reached.
INNER_RETRY_SECONDS = 0.01
INNER_ATTEMPTS = 300
# Lines of connections that came to nothing: each user may cause so many at once, and one more every
# ten seconds.
UNASKED_AT_ONCE = 50
UNASKED_SECONDS = 10.0
# A full queue, and no descriptors left: others come to an end meanwhile.
_PASSING = frozenset({errno.EAGAIN, errno.EMFILE, errno.ENFILE})


class _TooManyCallsError(PeerError):
    """One call more is too much."""

    def __init__(self, error: OverLimitError) -> None:
        super().__init__(str(error))
        self.word = error.reason


@dataclass(slots=True)
class _Connection:
    """One accepted connection."""

    token: ConnectionToken
    outer: socket.socket
    visitor: Visitor
    calls: int = 0
    """With how many the server has begun."""
    counted: int = 0
    """How many are under way, as `Admission.calls` was told."""
    relay: Relay | None = None
    silence: asyncio.TimerHandle | None = None
    challenge: Challenge = field(init=False)

    def __post_init__(self) -> None:
        self.challenge = Challenge(self._send)

    def _send(self, data: bytes) -> None:
        if self.relay is not None:
            self.relay.inbound.send(data)

    @property
    def caller(self) -> Caller:
        """Who made it.

        Raises:
            PeerError: the kernel could not name the peer.
        """
        if isinstance(self.visitor.caller, PeerError):
            raise self.visitor.caller
        return self.visitor.caller


class Gate:
    """Accepts connections and relays them to the server behind `inner_path`.

    A connection may be silent for `first_request_seconds`.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        inner_path: str,
        door: Door,
        log: FilteringBoundLogger,
        first_request_seconds: float,
        signals: Signals = UNHEARD,
    ) -> None:
        self._loop = loop
        self._inner_path = inner_path
        self.door = door
        self._log = log
        self._first_request_seconds = first_request_seconds
        self._signals = signals
        self._connections: dict[ConnectionToken, _Connection] = {}
        self._of_caller: dict[Caller, _Connection] = {}
        self._weaknesses: Counter[str] = Counter()
        self._drained = asyncio.Event()
        self._unasked = RateLimit(UNASKED_AT_ONCE, UNASKED_SECONDS)
        self._acceptor = Acceptor(loop, self._admit, lambda: len(self), log)

    def __len__(self) -> int:
        """How many connections are open."""
        return len(self._connections)

    @property
    def accepts(self) -> bool:
        """Whether whoever connects now is served."""
        return self._acceptor.accepts

    @property
    def weaknesses(self) -> Mapping[str, int]:
        """How many connections so far had each of `Caller.weaknesses`."""
        return self._weaknesses

    def start(self, listener: socket.socket) -> None:
        """Begin to accept. The listener must have its senders stamped (agent.sender)."""
        self._acceptor.start(listener)

    def stop_accepting(self) -> None:
        """Accept no more; what is open goes on."""
        self._acceptor.stop()

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
            self._end(connection, "agent stopped")
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
        connection.calls += 1
        connection.visitor.lane.begun()
        return connection.caller

    def caller(self, peer: str) -> Caller:
        """The caller behind a gRPC peer name.

        Raises:
            PeerError: as above.
        """
        return self._connection(peer).caller

    def _connection(self, peer: str) -> _Connection:
        connection = self._connections.get(ConnectionToken(peer.removeprefix("unix-abstract:")))
        if connection is None:
            raise PeerError("the connection did not come through the public socket")
        return connection

    # --- accept ---------------------------------------------------------------------------------

    def _admit(self, outer: socket.socket) -> None:
        with Stopwatch(self._signals, Stage.ACCEPT):
            visitor = None
            try:
                visitor = self.door.enter(outer, self._loop.time())
            finally:
                if visitor is None:
                    outer.close()
            if visitor is not None:
                self._let_in(outer, visitor)

    def _let_in(self, outer: socket.socket, visitor: Visitor) -> None:
        connection = _Connection(ConnectionToken(secrets.token_hex(16)), outer, visitor)
        self._connections[connection.token] = connection
        if not isinstance(visitor.caller, PeerError):
            self._of_caller[visitor.caller] = connection
            self._loop.add_reader(visitor.caller.process, self._on_exit, connection)
            self._note_weaknesses(visitor.caller)
        if visitor.lane.pass_or_wait(partial(self._connect_in_turn, connection)):
            self._connect_in_turn(connection)

    def _note_weaknesses(self, caller: Caller) -> None:
        """One warning for each kind; all are counted, and each caller's record has its own."""
        for weakness in caller.weaknesses:
            self._weaknesses[weakness] += 1
            if self._weaknesses[weakness] == 1:
                self._log.warning("weaker proof", proof=str(caller.proof), weakness=weakness)

    # --- relay ----------------------------------------------------------------------------------

    def _connect_in_turn(self, connection: _Connection) -> None:
        if connection.token not in self._connections:
            return
        if has_hung_up(connection.outer):
            connection.visitor.lane.passed(0, 0)
            self._end(connection, "closed")
        else:
            connection.visitor.lane.connected()
            self._connect_inner(connection, INNER_ATTEMPTS)

    def _connect_inner(self, connection: _Connection, attempts: int) -> None:
        if connection.token not in self._connections:
            return
        inner = None
        try:
            inner = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            inner.bind(f"\0{connection.token}")
            inner.connect(self._inner_path)
        except OSError as error:
            _close(inner)
            if error.errno in _PASSING and attempts:
                self._loop.call_later(
                    INNER_RETRY_SECONDS, self._connect_inner, connection, attempts - 1
                )
            else:
                self._end(connection, f"agent cannot relay ({error.strerror})")
        else:
            self._relay(connection, inner)

    def _relay(self, connection: _Connection, inner: socket.socket) -> None:
        connection.relay = Relay(
            self._loop,
            Side(
                connection.outer,
                _reader(connection),
                partial(self._from_client, connection),
                connection.visitor.lane.pass_or_wait,
            ),
            Side(inner, read_from(inner), partial(self._to_client, connection)),
            lambda reason: self._end(connection, reason),
        )
        connection.relay.start()
        self._await_request(connection)

    def _from_client(self, connection: _Connection, chunk: bytes) -> bytes:
        challenge = connection.challenge
        requests, complete = challenge.requests, challenge.complete
        try:
            passing = challenge.from_client(chunk)
            self._count_calls(connection, challenge.calls)
        except OverLimitError as error:
            raise _TooManyCallsError(error) from error
        else:
            return passing
        finally:
            connection.visitor.lane.passed(
                challenge.requests - requests, challenge.complete - complete
            )

    def _to_client(self, connection: _Connection, chunk: bytes) -> bytes:
        passing = connection.challenge.to_client(chunk)
        self._count_calls(connection, connection.challenge.calls)
        return passing

    def _count_calls(self, connection: _Connection, now: int) -> None:
        if now != connection.counted:
            self.door.admission.calls(connection.visitor.place, connection.counted, now)
            connection.counted = now

    def _await_request(self, connection: _Connection) -> None:
        connection.silence = self._loop.call_later(
            self._first_request_seconds, self._end_if_silent, connection
        )

    def _end_if_silent(self, connection: _Connection) -> None:
        if connection.relay is not None and connection.relay.outbound.waiting:
            self._await_request(connection)  # we were not listening
        elif not connection.challenge.requests:
            self._signals.refused(Refused.SILENT)
            self._end(connection, f"no request within {self._first_request_seconds:g} s")

    # --- the end --------------------------------------------------------------------------------

    def _on_exit(self, connection: _Connection) -> None:
        self._end(connection, "process exited")

    def _end(self, connection: _Connection, reason: str | PeerError) -> None:
        if self._connections.pop(connection.token, None) is None:
            return
        if not self._connections:
            self._drained.set()
        if connection.silence is not None:
            connection.silence.cancel()
        if connection.relay is not None:
            connection.relay.close(reason)
        connection.challenge.close()
        connection.outer.close()
        if not isinstance(connection.visitor.caller, PeerError):
            del self._of_caller[connection.visitor.caller]
            self._loop.remove_reader(connection.visitor.caller.process)
        self._count_calls(connection, 0)
        self.door.leave(connection.visitor)
        if isinstance(reason, ForeignSenderError):
            self._signals.refused(Refused.FOREIGN_SENDER)
        elif isinstance(reason, _TooManyCallsError):
            self._signals.refused(reason.word)
        self._log_end(connection, reason)

    def _log_end(self, connection: _Connection, reason: str | PeerError) -> None:
        """One line for a connection that came to nothing; the others are told of by their calls.

        Whoever spoke in another's name, or called too often, is told of in any case.
        """
        caller = connection.visitor.caller
        if isinstance(caller, PeerError):
            if not connection.calls:
                self.door.note_refusal(None, RefusedConnection(reason=str(caller)))
        elif isinstance(reason, ForeignSenderError):
            self.door.note_refusal(caller, _refused_sender(reason))
        elif isinstance(reason, _TooManyCallsError):
            refusal = RefusedConnection(reason=str(reason), cgroup=caller.cgroup)
            self.door.note_refusal(caller, refusal)
        elif not connection.calls:
            self._log_unasked(caller, str(reason))

    def _log_unasked(self, caller: Caller, reason: str) -> None:
        pid, uid = caller.credentials.pid, caller.credentials.uid
        left_out = self._unasked.take(uid, self._loop.time())
        if left_out is not None:
            more = {"left_out_of_user": left_out} if left_out else {}
            self._log.info(
                "connection ended without a call", reason=reason, pid=pid, uid=uid, **more
            )


def _refused_sender(error: ForeignSenderError) -> RefusedSender:
    return RefusedSender(
        reason=str(error),
        sender_pid=error.pid,
        sender_uid=error.uid,
        sender_gid=error.gid,
        bytes=error.count,
    )


def _reader(connection: _Connection) -> Callable[[], bytes]:
    caller = connection.visitor.caller
    if isinstance(caller, PeerError):  # refused anyway, whoever speaks
        return read_from(connection.outer)
    outer, lane = connection.outer, connection.visitor.lane
    return lambda: receive(outer, lane.bite, caller)


def _close(sock: socket.socket | None) -> None:
    if sock is not None:
        sock.close()
