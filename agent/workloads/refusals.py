"""The last refusals, for those who ask why. Each user has room for a few of their own."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cachetools import FIFOCache

if TYPE_CHECKING:
    from datetime import datetime

    from agent.clock import Clock
    from agent.kernel.credentials import Credentials

PER_USER = 20
USERS = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A call that did not get what it asked for."""

    at: datetime
    pid: int
    uid: int
    request: str
    status: str
    reason: str


class Refusals:
    """Remembers the last of them."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._by_uid: FIFOCache[int, deque[Refusal]] = FIFOCache(USERS)

    def note(self, credentials: Credentials, request: str, status: str, reason: str) -> None:
        """Remember one, and forget the oldest of the same user, or of the user longest silent."""
        uid = credentials.uid
        refusal = Refusal(
            at=self._clock.now(),
            pid=credentials.pid,
            uid=uid,
            request=request,
            status=status,
            reason=reason,
        )
        of_user = self._by_uid.get(uid, deque(maxlen=PER_USER))
        of_user.append(refusal)
        self._by_uid[uid] = of_user

    def of(self, pid: int, uid: int) -> tuple[Refusal, ...]:
        """Those of this process or this user, the latest first.

        A process that has the PID now need not be the one that had it then.
        """
        found = [
            r for group in self._by_uid.values() for r in group if pid == r.pid or uid == r.uid
        ]
        return tuple(sorted(found, key=lambda refusal: refusal.at, reverse=True))
