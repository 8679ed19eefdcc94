"""The audit trail: a line for each SVID that is handed out, and for each call that gets none.

A line names the process by boot and pidfs inode, which no other process ever has, and says what was
known of it when it was attested; nothing is read later, when somebody else may have its PID.

Lines of SVIDs are always written. Whoever is refused again and again gets a line now and then,
which says how many were left out: nobody can fill the disk.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar, Protocol, TypeAlias

from agent.telemetry.plain import to_plain
from agent.telemetry.throttled_log import Rate, Throttle

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime

    from agent.kernel.caller import Caller
    from attestors.api import Selector

# Lines about refusals, of each user and of all users together: at most some 40 MB a day.
LINES_PER_USER = Rate(50, 10.0)
LINES_IN_ALL = Rate(1000, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuedX509:
    """An X.509-SVID; its serial number is in hexadecimal digits."""

    kind: ClassVar[str] = "x509-svid"
    spiffe_id: str
    entry_id: str
    serial: str
    expires_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuedJwt:
    """A JWT-SVID. The key ID is that of the key which signed it."""

    kind: ClassVar[str] = "jwt-svid"
    spiffe_id: str
    entry_id: str
    kid: str
    audience: tuple[str, ...]
    expires_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedCall:
    """A call that got a status instead of what it asked for."""

    event: ClassVar[str] = "call refused"
    reason: str
    status: str
    request: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedConnection:
    """A connection that ended before a call could be refused.

    The cgroup is that of one who has too many.
    """

    event: ClassVar[str] = "connection refused"
    reason: str
    cgroup: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedSender(RefusedConnection):
    """A connection on which another process than its own spoke."""

    sender_pid: int
    sender_uid: int
    sender_gid: int
    bytes: int


Issued: TypeAlias = "IssuedX509 | IssuedJwt"
Refused: TypeAlias = "RefusedCall | RefusedConnection"


class Evidence(Protocol):
    """What was found out about a process."""

    @property
    def executable(self) -> str | None:
        """What the kernel calls the program it runs."""
        ...

    @property
    def selectors(self) -> frozenset[Selector]:
        """What is true of it."""
        ...


class Audit:
    """Writes the audit trail, while it is `enabled`.

    Args:
        write: takes the name of an event and its fields.
        boot_id: the kernel's, for this boot.
        evidence_of: what was found out when a caller who is refused was last attested; None if it
            never was, or if that did not hold.
        seconds: a clock that only goes forward.
    """

    def __init__(
        self,
        write: Callable[..., object],
        boot_id: str,
        evidence_of: Callable[[Caller], Evidence | None],
        seconds: Callable[[], float],
        lines_per_user: Rate = LINES_PER_USER,
        lines_in_all: Rate = LINES_IN_ALL,
    ) -> None:
        self.enabled = True
        self._write = write
        self._boot_id = boot_id
        self._evidence_of = evidence_of
        self._throttle = Throttle(lines_per_user, lines_in_all, seconds)

    def issued(self, caller: Caller, svid: Issued, evidence: Evidence | None) -> None:
        """Write that a caller is about to get this SVID, on this evidence."""
        if self.enabled:
            who = self._who(caller, evidence)
            self._write("svid issued", **_fields_of(svid), **who)

    def refused(self, caller: Caller | None, refusal: Refused) -> None:
        """Write that a caller gets nothing; None if the kernel cannot name it."""
        if not self.enabled:
            return
        uid = None if caller is None else caller.credentials.uid
        suppressed = self._throttle.admit(uid)
        if suppressed is not None:
            why = {k: v for k, v in to_plain(refusal).items() if v is not None}
            who = {} if caller is None else self._who(caller, self._evidence_of(caller))
            self._write(refusal.event, **why, **who, **suppressed)

    def _who(self, caller: Caller, evidence: Evidence | None) -> dict[str, object]:
        who: dict[str, object] = {"pid": caller.credentials.pid, "uid": caller.credentials.uid}
        if evidence is not None:
            if evidence.executable is not None:
                who["executable"] = evidence.executable
            who["selectors_sha256"] = selectors_sha256(evidence.selectors)
        if caller.process.inode is not None:
            who["process"] = f"{self._boot_id}/{caller.process.inode}"
        return who


# These two are asked for the same again and again: who comes back has the same SVIDs.
@lru_cache(maxsize=1024)
def _fields_of(svid: Issued) -> Mapping[str, object]:
    return {"kind": svid.kind, **to_plain(svid)}


@lru_cache(maxsize=1024)
def selectors_sha256(selectors: frozenset[Selector]) -> str:
    """The digest of the selectors as operators see them: sorted, each with the end of its line.

    Values of environment variables are hidden first, so that nobody can guess them by the digest.
    """
    text = "".join(f"{each}\n" for each in sorted(each.redacted() for each in selectors))
    return hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest()
