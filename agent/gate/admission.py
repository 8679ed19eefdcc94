"""The door: who came in, and whether there is room for one more. Nothing is relayed yet.

A flood costs least where hardly anything is done for each who comes: a process that was refused is
refused again, for a moment, by its PID alone.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from agent.errors import PeerError, PeerGoneError
from agent.kernel.account import Account
from agent.kernel.caller import identify
from agent.kernel.credentials import read_pid
from agent.limits.quotas import OverLimitError
from agent.signals import UNHEARD, Refused
from agent.telemetry.audit import RefusedConnection
from agent.transport.connection import Admitted

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from agent.kernel.caller import Caller
    from agent.limits.fair_queue import FairQueue
    from agent.limits.quotas import Quotas
    from agent.signals import Signals

# How long a process that was refused is refused again without a closer look.
REFUSED_SECONDS = 0.2
REFUSED_PROCESSES = 1024
# Nobody in particular, as whom all count together whom the kernel could not name.
NOBODY = Account(-1, "")


class Admission:
    """Lets visitors in, as long as they are not too many.

    `note_refusal` is told of each connection that ends because of who made it, or speaks on it.
    `identify_peer`, which tells who connected, may be replaced. `admission` and `call_bytes`, the
    most that may be sent in one call, are for what its visitors have later.
    """

    def __init__(
        self,
        quotas: Quotas,
        fair_queue: FairQueue,
        note_refusal: Callable[[Caller | None, RefusedConnection], None],
        identify_peer: Callable[[socket.socket], Caller] = identify,
        signals: Signals = UNHEARD,
        call_bytes: float = math.inf,
    ) -> None:
        self.call_bytes = call_bytes
        self.identify_peer = identify_peer
        self.quotas = quotas
        self._fair_queue = fair_queue
        self.note_refusal = note_refusal
        self._signals = signals
        self._refused: dict[int, tuple[float, OverLimitError]] = {}

    def enter(self, sock: socket.socket, now: float) -> Admitted | None:
        """Let somebody in who has connected; `leave` at the end of the connection.

        Returns:
            None if it is gone already, or one too many.

        Raises:
            OSError: the agent is out of descriptors or memory.
        """
        try:
            self._check_not_refused_just_now(sock, now)
            return self._admit(sock, now)
        except PeerGoneError as error:
            self.note_refusal(None, RefusedConnection(reason=str(error)))
            self._signals.refused(Refused.GONE)
        except OverLimitError as error:
            self._signals.refused(error.reason)
        return None

    def leave(self, admitted: Admitted) -> None:
        """The end of somebody's connection, and of the caller's pidfd."""
        self.quotas.disconnect(admitted.account)
        if not isinstance(admitted.caller, PeerError):
            admitted.caller.close()

    def _admit(self, sock: socket.socket, now: float) -> Admitted:
        try:
            caller: Caller | PeerError = self.identify_peer(sock)
        except PeerGoneError:
            raise
        except PeerError as error:
            caller = error
        account = NOBODY if isinstance(caller, PeerError) else caller.account
        try:
            self.quotas.connect(account)
        except OverLimitError as error:
            if not isinstance(caller, PeerError):
                self._turn_away(caller, error, now)
            raise
        return Admitted(caller, account, self._fair_queue.lane(account))

    def _turn_away(self, caller: Caller, error: OverLimitError, now: float) -> None:
        """One more is too many of them: say so, but not each time."""
        caller.close()
        if len(self._refused) >= REFUSED_PROCESSES:
            self._refused.clear()
        self._refused[caller.credentials.pid] = (now + REFUSED_SECONDS, error)
        self.note_refusal(caller, RefusedConnection(reason=str(error), cgroup=caller.cgroup))

    def _check_not_refused_just_now(self, sock: socket.socket, now: float) -> None:
        if self._refused:
            until, error = self._refused.get(read_pid(sock), (0.0, None))
            if error is not None and now < until:
                # Raised once more as it is, it would keep the trace of each time, for ever.
                raise error.with_traceback(None)
