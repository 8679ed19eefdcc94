"""Log, audit and count why connections ended.

The log has a line for a connection that ended without a call; calls log themselves. The audit trail
has a line for each connection that was cut because of its sender, of a quota, or of a broken rule
of HTTP/2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.errors import PeerError
from agent.kernel.sender import ForeignSenderError
from agent.signals import Refused
from agent.telemetry.audit import RefusedConnection, RefusedSender
from agent.telemetry.throttled_log import Rate, ThrottledLog
from agent.transport.connection import OverQuotaError, ProtocolError, SilentError, SlowError

if TYPE_CHECKING:
    from collections.abc import Callable

    from structlog.typing import FilteringBoundLogger

    from agent.kernel.caller import Caller
    from agent.signals import Signals
    from agent.transport.connection import Connection

# Log lines about connections without a call, of each user and of all users together.
LINES_PER_USER = Rate(50, 10.0)
LINES_IN_ALL = Rate(1000, 1.0)


class DisconnectLog:
    """Writes to the log, the audit trail and the metrics why connections ended.

    `note_refusal` takes the connections that were cut because of their caller or their sender.
    """

    def __init__(
        self,
        note_refusal: Callable[[Caller | None, RefusedConnection], None],
        log: FilteringBoundLogger,
        signals: Signals,
        seconds: Callable[[], float],
    ) -> None:
        self._note_refusal = note_refusal
        self._signals = signals
        self._throttled = ThrottledLog(log, LINES_PER_USER, LINES_IN_ALL, seconds)

    def note(self, connection: Connection, reason: str | PeerError) -> None:
        """Note that a connection has ended."""
        if word := _word(reason):
            self._signals.refused(word)
        caller = connection.admitted.caller
        if isinstance(caller, PeerError):
            if not connection.calls.begun:
                self._note_refusal(None, RefusedConnection(reason=str(caller)))
        elif isinstance(reason, ForeignSenderError):
            self._note_refusal(caller, _refused_sender(reason))
        elif isinstance(reason, OverQuotaError):
            self._note_refusal(caller, RefusedConnection(reason=str(reason), cgroup=caller.cgroup))
        elif isinstance(reason, ProtocolError | SlowError):
            self._note_refusal(caller, RefusedConnection(reason=str(reason)))
        elif not connection.calls.begun:
            self._log_without_call(caller, str(reason))

    def _log_without_call(self, caller: Caller, reason: str) -> None:
        pid, uid = caller.credentials.pid, caller.credentials.uid
        self._throttled.info(
            "connection ended without a call", uid, reason=reason, pid=pid, uid=uid
        )


def _word(reason: str | PeerError) -> str:
    """Return the metric's reason; empty if the connection was not refused."""
    match reason:
        case ForeignSenderError():
            return Refused.FOREIGN_SENDER
        case OverQuotaError():
            return reason.word
        case ProtocolError():
            return Refused.EXCESS if reason.is_excess else Refused.PROTOCOL
        case SlowError():
            return Refused.SLOW
        case SilentError():
            return Refused.SILENT
        case _:
            return ""


def _refused_sender(error: ForeignSenderError) -> RefusedSender:
    return RefusedSender(
        reason=str(error),
        sender_pid=error.pid,
        sender_uid=error.uid,
        sender_gid=error.gid,
        bytes=error.count,
    )
