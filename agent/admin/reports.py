"""The reports of the admin API: plain values with the field names of proto/admin.proto."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from agent.entries.explain import Verdict
    from agent.workloads.refusals import Refusal


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthorityStatus:
    """An authority and its next step."""

    authority_id: str
    kind: str
    state: str
    since: datetime
    expires_at: datetime
    next_step: str
    next_step_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthorityList:
    """All authorities. `failure` is why the last due step of the rotation failed."""

    bundle_sequence: int
    authorities: tuple[AuthorityStatus, ...]
    failure: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EntriesStatus:
    """The entries in force. `problems` are why the files as they are now are not in force."""

    loaded: int
    loaded_at: datetime
    tried_at: datetime
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectedCaller:
    """A connected process and the identities that it has now."""

    pid: int
    uid: int
    since: datetime | None
    spiffe_ids: tuple[str, ...]
    streams: tuple[str, ...]
    next_renewal: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """The state of the agent: authorities, entries, callers."""

    version: str
    trust_domain: str
    started_at: datetime
    authority: AuthorityList
    entries: EntriesStatus
    attestors: tuple[str, ...]
    connections: int
    x509_svids: int
    jwt_svids: int
    callers: tuple[ConnectedCaller, ...]
    locked_out_uids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AttestorReport:
    """The selectors that one attestor found for a process, and the time that it took."""

    attestor: str
    duration_seconds: float
    remembered: bool
    selectors: tuple[str, ...]
    notes: tuple[str, ...]
    failure: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """The identities that a method served last to a process."""

    at: datetime
    method: str
    spiffe_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Why a process gets, or does not get, each identity.

    `refused`: why the process is refused whatever its selectors; empty if it is not.
    """

    process: Mapping[str, Any]
    attestors: tuple[AttestorReport, ...] = ()
    verdict: Verdict | None = None
    refused: str = ""
    served: tuple[Served, ...] = ()
    refusals: tuple[Refusal, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CallerDiff:
    """The identities that a connected caller would gain and lose."""

    pid: int
    uid: int
    gained: tuple[str, ...]
    lost: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EntriesDiff:
    """The connected callers that other entries would affect, and the number of the rest."""

    changed: tuple[CallerDiff, ...]
    unchanged: int
