"""Users whose processes connect and hang up without end are locked out for a while, by the kernel.

Such a connect costs its maker nearly nothing, and everybody else waits behind it in the one queue
that a listening socket has (listen(2)). Nobody gets as far as that queue who may not write to the
socket's file (unix(7)), so that an entry in the file's access control list (acl(5)) keeps out one
user and nobody else. In a list of ours an entry without any right is a lockout, and no operator's:
what a former agent has left behind goes at the start.

The owner of the file, root, and who else may write to all files cannot be locked out.
"""

from __future__ import annotations

import errno
import os
import struct
from typing import TYPE_CHECKING, NamedTuple

from agent.limits import Bucket, RateLimit, Recent
from agent.signals import Refused

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Collection, Sequence

    from structlog.typing import FilteringBoundLogger

    from agent.signals import Signals

# More than any program does that is in its right mind, and a hundredth of what a loop makes.
HANG_UPS_AT_ONCE = 3000
HANG_UPS_PER_SECOND = 1000.0
LOCKED_SECONDS = 1.0
# As many at a time. A list may be longer, but takes longer then.
MOST_USERS = 64
LINE_SECONDS = 10.0

# include/uapi/linux/posix_acl_xattr.h, posix_acl.h
_ATTRIBUTE = "system.posix_acl_access"
_HEADER, _ENTRY = struct.Struct("<I"), struct.Struct("<HHI")
_VERSION, _NO_ID = 2, 0xFFFFFFFF
_OWNER, _USER, _GROUP_OF_FILE, _GROUP, _MASK, _OTHERS = 1, 2, 4, 8, 16, 32


class Entry(NamedTuple):
    """Of an access control list: whom it is about, and what they may do."""

    tag: int
    identity: int
    rights: int


class Lockout:
    """Locks users out of the socket file at `path`, to which this process has to belong.

    Where it may not change the list, nobody is ever locked out, which is said once.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        path: str,
        log: FilteringBoundLogger,
        signals: Signals,
    ) -> None:
        self._loop = loop
        self._path = path
        self._log = log
        self._signals = signals
        self._buckets: Recent[int, Bucket] = Recent(
            lambda: Bucket(burst=HANG_UPS_AT_ONCE, rate=HANG_UPS_PER_SECOND)
        )
        self._lines = RateLimit(1, LINE_SECONDS)
        self._timers: dict[int, asyncio.TimerHandle] = {}
        self._able = True
        self._change(_opened)

    def hung_up(self, uid: int, times: int) -> None:
        """So many connections of this user came to nothing."""
        bucket, now = self._buckets.of(uid), self._loop.time()
        bucket.charge(times, now)
        if bucket.tokens(now) < 0 and uid not in self._timers and len(self._timers) < MOST_USERS:
            self._lock(uid, now)

    def close(self) -> None:
        """Let everybody in again."""
        for timer in self._timers.values():
            timer.cancel()
        if self._timers:
            self._timers.clear()
            self._change(_opened)

    def _lock(self, uid: int, now: float) -> None:
        self._timers[uid] = self._loop.call_later(LOCKED_SECONDS, self._unlock, uid)
        if not self._change(lambda entries: _locked(entries, self._timers)):
            return
        self._signals.refused(Refused.LOCKED_OUT)
        unsaid = self._lines.take(uid, now)
        if unsaid is not None:
            self._log.warning(
                "user locked out",
                reason="its processes connect and hang up again and again",
                uid=uid,
                seconds=LOCKED_SECONDS,
                times_not_logged=unsaid,
            )

    def _unlock(self, uid: int) -> None:
        del self._timers[uid]
        self._change(lambda entries: _locked(entries, self._timers))

    def _change(self, change: Callable[[Sequence[Entry]], Sequence[Entry]]) -> bool:
        """Change the list, if that is possible."""
        if not self._able:
            return False
        try:
            before = _read(self._path)
            if (after := sorted(change(before))) != before:
                os.setxattr(self._path, _ATTRIBUTE, _encode(after), follow_symlinks=False)
        except OSError as error:
            self._able = False
            self._log.info("nobody can be locked out of the socket", reason=error.strerror)
        return self._able


def _opened(entries: Sequence[Entry]) -> Sequence[Entry]:
    """Without those that lock somebody out, and the mask if nobody needs it any more."""
    kept = [each for each in entries if not (each.tag == _USER and each.rights == 0)]
    if all(each.tag in {_OWNER, _GROUP_OF_FILE, _MASK, _OTHERS} for each in kept):
        kept = [each for each in kept if each.tag != _MASK]
    return kept


def _locked(entries: Sequence[Entry], users: Collection[int]) -> Sequence[Entry]:
    kept = [*_opened(entries)]
    if not users:
        return kept
    if all(each.tag != _MASK for each in kept):
        # What the group of the file may do, it may do on.
        [rights] = [each.rights for each in kept if each.tag == _GROUP_OF_FILE]
        kept.append(Entry(_MASK, _NO_ID, rights))
    return [*kept, *(Entry(_USER, uid, 0) for uid in users)]


def _read(path: str) -> Sequence[Entry]:
    try:
        content = os.getxattr(path, _ATTRIBUTE, follow_symlinks=False)
    except OSError as error:
        if error.errno != errno.ENODATA:
            raise
        mode = os.lstat(path).st_mode
        tags = ((_OWNER, 6), (_GROUP_OF_FILE, 3), (_OTHERS, 0))
        return [Entry(tag, _NO_ID, mode >> shift & 7) for tag, shift in tags]
    parts = _ENTRY.iter_unpack(content[_HEADER.size :])
    return [Entry(tag, identity, rights) for tag, rights, identity in parts]


def _encode(entries: Sequence[Entry]) -> bytes:
    parts = [_ENTRY.pack(each.tag, each.rights, each.identity) for each in entries]
    return b"".join([_HEADER.pack(_VERSION), *parts])
