"""What is said of connections that came to nothing; of others their calls tell.

Whoever spoke in another's name, called too often, or sent too much is told of in any case.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.errors import PeerError
from agent.kernel.sender import ForeignSenderError
from agent.limits.rate_limit import RateLimit
from agent.signals import Refused
from agent.telemetry.audit import RefusedConnection, RefusedSender
from agent.transport.connection import SilentError, TooManyCallsError
from agent.transport.http2 import HeaderBlockError, RequestSizeError

if TYPE_CHECKING:
    from collections.abc import Callable

    from structlog.typing import FilteringBoundLogger

    from agent.kernel.caller import Caller
    from agent.signals import Signals
    from agent.transport.connection import Connection

# Lines of connections without a call: each user may cause so many at once, and one more every ten
# seconds.
UNASKED_AT_ONCE = 50
UNASKED_SECONDS = 10.0


class DisconnectLog:
    """Tells the log, the audit trail and the metrics why connections ended.

    `note_refusal` is told of those that ended because of who made them, or spoke on them.
    """

    def __init__(
        self,
        note_refusal: Callable[[Caller | None, RefusedConnection], None],
        log: FilteringBoundLogger,
        signals: Signals,
        seconds: Callable[[], float],
    ) -> None:
        self._note_refusal = note_refusal
        self._log = log
        self._signals = signals
        self._seconds = seconds
        self._unasked = RateLimit(UNASKED_AT_ONCE, UNASKED_SECONDS)

    def note(self, connection: Connection, reason: str | PeerError) -> None:
        """A connection has ended."""
        if word := _word(reason):
            self._signals.refused(word)
        caller = connection.admitted.caller
        if isinstance(caller, PeerError):
            if not connection.calls:
                self._note_refusal(None, RefusedConnection(reason=str(caller)))
        elif isinstance(reason, ForeignSenderError):
            self._note_refusal(caller, _refused_sender(reason))
        elif isinstance(reason, TooManyCallsError):
            self._note_refusal(caller, RefusedConnection(reason=str(reason), cgroup=caller.cgroup))
        elif isinstance(reason, HeaderBlockError | RequestSizeError):
            self._note_refusal(caller, RefusedConnection(reason=str(reason)))
        elif not connection.calls:
            self._log_unasked(caller, str(reason))

    def _log_unasked(self, caller: Caller, reason: str) -> None:
        pid, uid = caller.credentials.pid, caller.credentials.uid
        left_out = self._unasked.take(uid, self._seconds())
        if left_out is not None:
            more = {"left_out_of_user": left_out} if left_out else {}
            self._log.info(
                "connection ended without a call", reason=reason, pid=pid, uid=uid, **more
            )


def _word(reason: str | PeerError) -> str:
    """For the metrics; empty if nobody was refused."""
    match reason:
        case ForeignSenderError():
            return Refused.FOREIGN_SENDER
        case TooManyCallsError():
            return reason.word
        case HeaderBlockError():
            return Refused.HEADERS
        case RequestSizeError():
            return Refused.SIZE
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
