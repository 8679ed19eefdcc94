"""Lock a user out of the socket for a moment, when its processes connect and hang up without end.

Such a connect costs the client nearly nothing, and all other connections wait behind it in the one
queue of the listening socket (listen(2)). The kernel refuses a connect before this queue if the
user may not write to the socket's file (unix(7)). An entry in the file's access control list
(acl(5)) therefore keeps out one user and no other.

The agent's entries have the execute permission, which means nothing on a socket: no entry of an
operator looks like that. At its start the agent removes such entries, which a killed agent leaves
behind. Root and the owner of the file are never locked out: an entry would stop only their
processes without capabilities.
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

# At the start the queue may hold 4096 connections, hung up while no agent was running.
HANG_UPS_AT_ONCE = 2 * 4096
# More than any sensible program makes; a loop makes some 200,000. In the second before a lockout
# the agent takes this many; other users wait 5 ms.
HANG_UPS_PER_SECOND = 1000.0
LOCKED_SECONDS = 1.0
# Users at a time: the kernel searches the list at each connect.
MOST_USERS = 64
# Log lines of each user, and of all users together.
LINES_PER_USER = Rate(1, 10.0)
LINES_IN_ALL = Rate(10, 1.0)

# include/uapi/linux/posix_acl_xattr.h, posix_acl.h
_ATTRIBUTE = "system.posix_acl_access"
_HEADER, _ENTRY = struct.Struct("<I"), struct.Struct("<HHI")
_VERSION, _NO_ID = 2, 0xFFFFFFFF
# The permission to execute marks the agent's entries.
_OURS = 1
_OWNER, _USER, _GROUP_OF_FILE, _GROUP, _MASK, _OTHERS = 1, 2, 4, 8, 16, 32


class AclEntry(NamedTuple):
    """An entry of an access control list (acl(5))."""

    tag: int
    identity: int
    rights: int


class Lockout:
    """Locks users out of the socket file at `path`, which must belong to the agent's user."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        path: str,
        log: FilteringBoundLogger,
        signals: Signals,
        locked_seconds: float = LOCKED_SECONDS,
    ) -> None:
        self._loop = loop
        self._path = path
        self._signals = signals
        self._locked_seconds = locked_seconds
        self._buckets: LRUCache[int, Bucket] = LRUCache(KEYS)
        self._throttled = ThrottledLog(log, LINES_PER_USER, LINES_IN_ALL, loop.time)
        self._timers: dict[int, asyncio.TimerHandle] = {}
        self._retry: asyncio.TimerHandle | None = None
        self._set_locked_out(())

    @property
    def users(self) -> Collection[int]:
        """The users that are locked out now."""
        return self._timers.keys()

    def hung_up(self, uid: int, times: int) -> None:
        """Count connections of this user that were hung up before they were accepted."""
        now = self._loop.time()
        bucket = self._buckets.get(uid)
        if bucket is None:
            bucket = Bucket(burst=HANG_UPS_AT_ONCE, rate=HANG_UPS_PER_SECOND)
            self._buckets[uid] = bucket
        # The debt is at most that of one lockout: a user that continues is locked out again at
        # once, and a user that has stopped is free after it.
        room = bucket.tokens(now) + HANG_UPS_PER_SECOND * self._locked_seconds
        bucket.charge(min(times, max(0.0, room)), now)
        if bucket.tokens(now) < 0 and uid not in self._timers and len(self._timers) < MOST_USERS:
            self._lock(uid)

    def close(self) -> None:
        """Remove the agent's entries from the list."""
        pending = [*self._timers.values(), *([self._retry] if self._retry else [])]
        for timer in pending:
            timer.cancel()
        self._timers.clear()
        if pending:
            self._set_locked_out(())

    def _lock(self, uid: int) -> None:
        if uid in {0, self._owner()} or not self._set_locked_out((*self._timers, uid)):
            return
        self._timers[uid] = self._loop.call_later(self._locked_seconds, self._unlock, uid)
        self._signals.refused(Refused.LOCKED_OUT)
        self._throttled.warning(
            "user locked out",
            uid,
            reason="its processes connect and hang up again and again",
            uid=uid,
            duration_seconds=self._locked_seconds,
        )

    def _unlock(self, uid: int) -> None:
        del self._timers[uid]
        self._write_list()

    def _write_list(self) -> None:
        """Write the list of the users to lock out, and retry until it succeeds."""
        if self._retry is not None:
            self._retry.cancel()  # one retry serves all users
            self._retry = None
        if not self._set_locked_out(tuple(self._timers)):
            self._retry = self._loop.call_later(self._locked_seconds, self._write_list)

    def _owner(self) -> int:
        try:
            return os.lstat(self._path).st_uid
        except OSError:
            return -1

    def _set_locked_out(self, users: Collection[int]) -> bool:
        """Lock these users out and no others; return whether the list could be written."""
        try:
            entries = sorted(_acl_with(_read(self._path), users))
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


def _acl_with(entries: Sequence[AclEntry], users: Collection[int]) -> Sequence[AclEntry]:
    """Return the operator's entries, and the agent's for these users.

    Of two entries for one user the kernel takes the first. After sorting that is the agent's, which
    has the fewest rights.
    """
    kept = [each for each in entries if not (each.tag == _USER and each.rights == _OURS)]
    ours = [AclEntry(_USER, uid, _OURS) for uid in users]
    masks = [each.rights for each in kept if each.tag == _MASK]
    if all(each.tag in {_OWNER, _GROUP_OF_FILE, _MASK, _OTHERS} for each in (*kept, *ours)):
        return [_narrowed(each, masks) for each in kept if each.tag != _MASK]
    if not masks:
        # A list with users needs a mask. This one leaves the file's group its rights.
        kept += [AclEntry(_MASK, _NO_ID, e.rights) for e in kept if e.tag == _GROUP_OF_FILE]
    return [*kept, *ours]


def _narrowed(entry: AclEntry, masks: Sequence[int]) -> AclEntry:
    """Keep from the file's group the rights that the mask took, for example by chmod(1)."""
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
