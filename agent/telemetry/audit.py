"""The audit trail: one line for each SVID handed out and for each refusal.

A line names the process by boot ID and pidfs inode, which no other process ever has, and records
the evidence of its attestation. Nothing is read afterwards: the PID may belong to another process.

Lines about SVIDs are never suppressed. Lines about refusals are limited per user and in all, and
the next line counts the suppressed ones, so that no user can fill the disk.

`Audit` forms the fields. Its `write` is `agent.telemetry.log.LogWriter.audit`, which queues the
line for the thread of the log; `agent.cli.run` passes it to the daemon as `Host.audit`. A process
that calls again causes the same event: it is one object, and the log renders it once.
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


@dataclass(frozen=True, slots=True, eq=False)
class AuditEvent:
    """An event of the audit trail with its fields. Events are equal if they are one object."""

    event: str
    fields: Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuedX509:
    """An X.509-SVID handed out. `serial` is hexadecimal."""

    kind: ClassVar[str] = "x509"
    spiffe_id: str
    entry_id: str
    serial: str
    expires_at: datetime

    def __hash__(self) -> int:
        # Every call looks this up: the hashes of the texts are kept, that of a time is not.
        return hash((self.entry_id, self.serial))


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuedJwt:
    """A JWT-SVID handed out. `kid` is the ID of the signing key."""

    kind: ClassVar[str] = "jwt"
    spiffe_id: str
    entry_id: str
    kid: str
    audience: tuple[str, ...]
    expires_at: datetime

    def __hash__(self) -> int:
        # See IssuedX509.
        return hash((self.entry_id, self.audience))


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedCall:
    """A call that ended with an error status.

    `method` is the short name of a method of the Workload API, else the full `/service/Method`;
    `code` is the name of a gRPC status code.
    """

    event: ClassVar[str] = "call refused"
    reason: str
    code: str
    method: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedConnection:
    """A connection that the agent closed, with the calls that were open on it.

    `cgroup` is set if a quota was exceeded.
    """

    event: ClassVar[str] = "connection refused"
    reason: str
    cgroup: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedSender(RefusedConnection):
    """A connection that was closed because another process than the caller sent bytes on it."""

    sender_pid: int
    sender_uid: int
    sender_gid: int
    bytes: int


Issued: TypeAlias = "IssuedX509 | IssuedJwt"
Refusal: TypeAlias = "RefusedCall | RefusedConnection"
_Holder: TypeAlias = (
    "tuple[int, int, str | None, frozenset[Selector] | None, tuple[str, int] | None]"
)


class Evidence(Protocol):
    """The result of an attestation, as the audit trail needs it."""

    @property
    def executable(self) -> str | None:
        """The path of the executable, as the kernel names it."""
        ...

    @property
    def selectors(self) -> frozenset[Selector]:
        """The selectors of the process."""
        ...


class Audit:
    """Writes the audit trail while `enabled`.

    Args:
        write: takes an event.
        boot_id: the kernel's ID of this boot.
        evidence_of: the result of a caller's last attestation; None if there is none that held.
        seconds: a clock that only goes forward.
        lines_per_user: the limit of lines about refusals of one user.
        lines_in_all: the limit of lines about refusals of all users together.
    """

    def __init__(
        self,
        write: Callable[[AuditEvent], object],
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
        """Write that this SVID is about to be sent to a caller with this evidence."""
        if self.enabled:
            self._write(_issued(svid, *self._holder(caller, evidence)))

    def refused(self, caller: Caller | None, refusal: Refusal) -> None:
        """Write a refusal. `caller` is None if the kernel could not identify it."""
        if not self.enabled:
            return
        uid = None if caller is None else caller.credentials.uid
        suppressed = self._throttle.admit(uid)
        if suppressed is not None:
            fields = {k: v for k, v in to_plain(refusal).items() if v is not None}
            if caller is not None:
                fields |= _fields_of(*self._holder(caller, self._evidence_of(caller)))
            self._write(AuditEvent(refusal.event, {**fields, **suppressed}))

    def _holder(self, caller: Caller, evidence: Evidence | None) -> _Holder:
        credentials, inode = caller.credentials, caller.process.inode
        key = None if inode is None else (self._boot_id, inode)
        if evidence is None:
            return credentials.pid, credentials.uid, None, None, key
        return credentials.pid, credentials.uid, evidence.executable, evidence.selectors, key


# Cached: a workload that calls again gets the same SVID with the same selectors.
@lru_cache(maxsize=1024)
def _issued(
    svid: Issued,
    pid: int,
    uid: int,
    executable: str | None,
    selectors: frozenset[Selector] | None,
    key: tuple[str, int] | None,
) -> AuditEvent:
    holder = _fields_of(pid, uid, executable, selectors, key)
    return AuditEvent("svid issued", {"kind": svid.kind, **to_plain(svid), **holder})


def _fields_of(
    pid: int,
    uid: int,
    executable: str | None,
    selectors: frozenset[Selector] | None,
    key: tuple[str, int] | None,
) -> dict[str, object]:
    """Return the fields that describe a caller, without those that have no value."""
    fields: dict[str, object] = {"pid": pid, "uid": uid}
    if executable is not None:
        fields["executable"] = executable
    if selectors is not None:
        fields["selectors_sha256"] = selectors_sha256(selectors)
    if key is not None:
        fields["process_key"] = f"{key[0]}/{key[1]}"
    return fields


@lru_cache(maxsize=1024)
def selectors_sha256(selectors: frozenset[Selector]) -> str:
    """Return the SHA-256 of the selectors as operators see them, sorted, one per line.

    Values of environment variables are redacted first: a digest of them could be guessed.
    """
    text = "".join(f"{each}\n" for each in sorted(each.redacted() for each in selectors))
    return hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest()
