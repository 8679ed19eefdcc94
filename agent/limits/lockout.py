"""Users whose processes connect and hang up without end are locked out for a while, by the kernel.

Such a connect costs its maker nearly nothing, and everybody else waits behind it in the one queue
that a listening socket has (listen(2)). Nobody gets as far as that queue who may not write to the
socket's file (unix(7)), so that an entry in the file's access control list (acl(5)) keeps out one
user and nobody else.

Our entries have the right to execute, which means nothing on a socket, so that no operator's looks
like them: what an agent that was killed has left behind goes at the next start. Root and the owner
of the file are spared: such an entry would keep out only those of them who have given up their
capabilities.
"""

from __future__ import annotations

import errno
import os
import struct
from typing import TYPE_CHECKING, NamedTuple

from cachetools import LRUCache

from agent.rate_limit import KEYS, Bucket
from agent.signals import Refused
from agent.telemetry.throttled_log import Rate, ThrottledLog

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Collection, Sequence

    from structlog.typing import FilteringBoundLogger

    from agent.signals import Signals

# The queue may hold 4096 from before an agent was there.
HANG_UPS_AT_ONCE = 2 * 4096
# More than any program does that is in its right mind; a loop makes some 200,000. As many get
# through each second before the next lockout, and everybody waits behind those: 3 ms.
HANG_UPS_PER_SECOND = 1000.0
LOCKED_SECONDS = 1.0
# As many at a time. A list may be longer, but takes longer then.
MOST_USERS = 64
# Log lines of each user, and of all users together.
LINES_PER_USER = Rate(1, 10.0)
LINES_IN_ALL = Rate(10, 1.0)

# include/uapi/linux/posix_acl_xattr.h, posix_acl.h
_ATTRIBUTE = "system.posix_acl_access"
_HEADER, _ENTRY = struct.Struct("<I"), struct.Struct("<HHI")
_VERSION, _NO_ID = 2, 0xFFFFFFFF
# To execute.
_OURS = 1
_OWNER, _USER, _GROUP_OF_FILE, _GROUP, _MASK, _OTHERS = 1, 2, 4, 8, 16, 32


class AclEntry(NamedTuple):
    """Of an access control list: whom it is about, and what they may do."""

    tag: int
    identity: int
    rights: int


class Lockout:
    """Locks users out of the socket file at `path`, to which this process has to belong."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        path: str,
        log: FilteringBoundLogger,
        signals: Signals,
    ) -> None:
        self._loop = loop
        self._path = path
        self._signals = signals
        self._buckets: LRUCache[int, Bucket] = LRUCache(KEYS)
        self._throttled = ThrottledLog(log, LINES_PER_USER, LINES_IN_ALL, loop.time)
        self._timers: dict[int, asyncio.TimerHandle] = {}
        self._retry: asyncio.TimerHandle | None = None
        self._change(())

    @property
    def users(self) -> Collection[int]:
        """Who is locked out now."""
        return self._timers.keys()

    def hung_up(self, uid: int, times: int) -> None:
        """So many connections of this user came to nothing."""
        now = self._loop.time()
        bucket = self._buckets.get(uid)
        if bucket is None:
            bucket = Bucket(burst=HANG_UPS_AT_ONCE, rate=HANG_UPS_PER_SECOND)
            self._buckets[uid] = bucket
        # At most a second's debt: who goes on is locked out again at once, who has stopped is free.
        owed = bucket.tokens(now) + HANG_UPS_PER_SECOND * LOCKED_SECONDS
        bucket.charge(min(times, max(0.0, owed)), now)
        if bucket.tokens(now) < 0 and uid not in self._timers and len(self._timers) < MOST_USERS:
            self._lock(uid)

    def close(self) -> None:
        """Let everybody in again."""
        pending = [*self._timers.values(), *([self._retry] if self._retry else [])]
        for timer in pending:
            timer.cancel()
        self._timers.clear()
        if pending:
            self._change(())

    def _lock(self, uid: int) -> None:
        if uid in {0, self._owner()} or not self._change((*self._timers, uid)):
            return
        self._timers[uid] = self._loop.call_later(LOCKED_SECONDS, self._unlock, uid)
        self._signals.refused(Refused.LOCKED_OUT)
        self._throttled.warning(
            "user locked out",
            uid,
            reason="its processes connect and hang up again and again",
            uid=uid,
            duration_seconds=LOCKED_SECONDS,
        )

    def _unlock(self, uid: int) -> None:
        del self._timers[uid]
        self._keep_up()

    def _keep_up(self) -> None:
        """Have those locked out who are to be, and nobody else, however often that fails."""
        if self._retry is not None:
            self._retry.cancel()  # of two who could not be let in, one tries for both
            self._retry = None
        if not self._change(tuple(self._timers)):
            self._retry = self._loop.call_later(LOCKED_SECONDS, self._keep_up)

    def _owner(self) -> int:
        try:
            return os.lstat(self._path).st_uid
        except OSError:
            return -1

    def _change(self, users: Collection[int]) -> bool:
        """Have these users locked out, and no others; whether that is possible."""
        try:
            entries = sorted(_locked(_read(self._path), users))
            os.setxattr(self._path, _ATTRIBUTE, _encode(entries), follow_symlinks=False)
        except OSError as error:
            self._throttled.warning(
                "lockout failed",
                None,
                reason=error.strerror,
                socket=self._path,
                advice="make the agent's user the owner of the file (SocketUser= of its unit)",
            )
            return False
        return True


def _locked(entries: Sequence[AclEntry], users: Collection[int]) -> Sequence[AclEntry]:
    """The entries that others have made, and ours for these users.

    The kernel takes the first of two about one user: that is ours, as it has the fewest rights.
    """
    kept = [each for each in entries if not (each.tag == _USER and each.rights == _OURS)]
    ours = [AclEntry(_USER, uid, _OURS) for uid in users]
    masks = [each.rights for each in kept if each.tag == _MASK]
    if all(each.tag in {_OWNER, _GROUP_OF_FILE, _MASK, _OTHERS} for each in (*kept, *ours)):
        return [_narrowed(each, masks) for each in kept if each.tag != _MASK]
    if not masks:
        # What the group of the file may do, it may do on.
        kept += [AclEntry(_MASK, _NO_ID, e.rights) for e in kept if e.tag == _GROUP_OF_FILE]
    return [*kept, *ours]


def _narrowed(entry: AclEntry, masks: Sequence[int]) -> AclEntry:
    """What a mask took from the group, by chmod(1) meanwhile, it does not get back with its end."""
    if entry.tag != _GROUP_OF_FILE or not masks:
        return entry
    return entry._replace(rights=entry.rights & masks[0])


def _read(path: str) -> Sequence[AclEntry]:
    try:
        content = os.getxattr(path, _ATTRIBUTE, follow_symlinks=False)
    except OSError as error:
        if error.errno != errno.ENODATA:
            raise
        mode = os.lstat(path).st_mode
        tags = ((_OWNER, 6), (_GROUP_OF_FILE, 3), (_OTHERS, 0))
        return [AclEntry(tag, _NO_ID, mode >> shift & 7) for tag, shift in tags]
    parts = _ENTRY.iter_unpack(content[_HEADER.size :])
    return [AclEntry(tag, identity, rights) for tag, rights, identity in parts]


def _encode(entries: Sequence[AclEntry]) -> bytes:
    parts = [_ENTRY.pack(each.tag, each.rights, each.identity) for each in entries]
    return b"".join([_HEADER.pack(_VERSION), *parts])
