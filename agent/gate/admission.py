"""Admit a connection: ask the kernel for its caller, and check the connection quota.

No byte is read yet. A process that was refused is refused again for a moment by its PID alone, so
that a flood of connections costs little.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.errors import PeerError, PeerGoneError
from agent.kernel.account import Account
from agent.kernel.caller import identify
from agent.kernel.credentials import read_pid
from agent.limits.quotas import OverLimitError
from agent.signals import NO_SIGNALS, Refused
from agent.telemetry.audit import RefusedConnection
from agent.transport.connection import Admitted

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from agent.kernel.caller import Caller
    from agent.limits.fair_queue import FairQueue
    from agent.limits.quotas import Quotas
    from agent.signals import Signals

# After a refusal the process is refused for so long without another look.
REFUSED_SECONDS = 0.2
REFUSED_PROCESSES = 1024
# All callers that the kernel could not name count against this account.
UNNAMED = Account(-1, "")


class Admission:
    """Admits connections within the quotas.

    `note_refusal` takes each connection that is refused because of its caller or its sender.
    `identify_peer` names the caller; it may be replaced. `quotas` are also for the admitted
    connections.
    """

    def __init__(
        self,
        quotas: Quotas,
        fair_queue: FairQueue,
        note_refusal: Callable[[Caller | None, RefusedConnection], None],
        identify_peer: Callable[[socket.socket], Caller] = identify,
        signals: Signals = NO_SIGNALS,
        refused_seconds: float = REFUSED_SECONDS,
    ) -> None:
        self.identify_peer = identify_peer
        self.quotas = quotas
        self._fair_queue = fair_queue
        self.note_refusal = note_refusal
        self._signals = signals
        self._refused_seconds = refused_seconds
        self._refused: dict[int, tuple[float, OverLimitError]] = {}

    def admit(self, sock: socket.socket, now: float) -> Admitted | None:
        """Admit a connection; `release` it at its end. `now` is in the event loop's seconds.

        Returns:
            None if its process is gone, or a quota is exhausted.

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

    def release(self, admitted: Admitted) -> None:
        """End an admitted connection: release its quota, and close the caller's pidfd."""
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
        account = UNNAMED if isinstance(caller, PeerError) else caller.account
        try:
            self.quotas.connect(account)
        except OverLimitError as error:
            if not isinstance(caller, PeerError):
                self._refuse(caller, error, now)
            raise
        return Admitted(caller, account, self._fair_queue.lane(account))

    def _refuse(self, caller: Caller, error: OverLimitError, now: float) -> None:
        """Note the refusal, and refuse the process for a moment without noting it again."""
        caller.close()
        if len(self._refused) >= REFUSED_PROCESSES:
            self._refused.clear()
        self._refused[caller.credentials.pid] = (now + self._refused_seconds, error)
        self.note_refusal(caller, RefusedConnection(reason=str(error), cgroup=caller.cgroup))

    def _check_not_refused_just_now(self, sock: socket.socket, now: float) -> None:
        if self._refused:
            until, error = self._refused.get(read_pid(sock), (0.0, None))
            if error is not None and now < until:
                # Each raise would add its frames to the traceback, which would grow without end.
                raise error.with_traceback(None)
