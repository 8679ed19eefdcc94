"""The last refused calls, for `vouchd explain`. Each user has room for a few."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cachetools import FIFOCache

if TYPE_CHECKING:
    from datetime import datetime

    from agent.clock import Clock
    from agent.kernel.credentials import Credentials
    from agent.telemetry.audit import RefusedCall

PER_USER = 20
USERS = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A call that ended with an error status."""

    at: datetime
    pid: int
    uid: int
    method: str
    code: str
    reason: str


class Refusals:
    """The last refusals of each user, of at most `users` users."""

    def __init__(self, clock: Clock, users: int = USERS) -> None:
        self._clock = clock
        self._by_uid: FIFOCache[int, deque[Refusal]] = FIFOCache(users)

    def note(self, credentials: Credentials, call: RefusedCall) -> None:
        """Add a refusal; drop the user's oldest, or the user whose last refusal is oldest."""
        uid = credentials.uid
        refusal = Refusal(
            at=self._clock.now(),
            pid=credentials.pid,
            uid=uid,
            method=call.method,
            code=call.code,
            reason=call.reason,
        )
        of_user = self._by_uid.get(uid, deque(maxlen=PER_USER))
        of_user.append(refusal)
        self._by_uid[uid] = of_user

    def of(self, pid: int, uid: int) -> tuple[Refusal, ...]:
        """Return the refusals of this PID or this user, the latest first.

        Another process may have had the PID at the time of a refusal.
        """
        refusals = [
            each
            for of_user in self._by_uid.values()
            for each in of_user
            if pid == each.pid or uid == each.uid
        ]
        return tuple(sorted(refusals, key=lambda refusal: refusal.at, reverse=True))
