"""What operators are told: plain values, whose fields are those of proto/admin.proto."""

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
    """One authority, and what happens to it next."""

    id: str
    kind: str
    state: str
    since: datetime
    not_after: datetime
    next_step: str
    next_step_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthorityList:
    """All authorities. `failure` tells why the last step that was due could not be taken."""

    bundle_sequence: int
    authorities: tuple[AuthorityStatus, ...]
    failure: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EntriesStatus:
    """The entries in force, and what is wrong with the files if these are others."""

    loaded: int
    loaded_at: datetime
    tried_at: datetime
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectedCaller:
    """A process that is served."""

    pid: int
    uid: int
    since: datetime | None
    spiffe_ids: tuple[str, ...]
    streams: tuple[str, ...]
    next_renewal: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """What the agent is doing, and for whom."""

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
    """What one attestor said of a process, and how long that took."""

    attestor: str
    milliseconds: float
    remembered: bool
    selectors: tuple[str, ...]
    notes: tuple[str, ...]
    failure: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What a process was given last by a method."""

    at: datetime
    method: str
    spiffe_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Why a process gets, or does not get, each identity. `refused` overrides the rest."""

    process: Mapping[str, Any]
    attestors: tuple[AttestorReport, ...] = ()
    verdict: Verdict | None = None
    refused: str = ""
    served: tuple[Served, ...] = ()
    refusals: tuple[Refusal, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CallerDiff:
    """What a connected caller would gain and lose."""

    pid: int
    uid: int
    gained: tuple[str, ...]
    lost: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EntriesDiff:
    """What other entries would change for those who are connected."""

    changed: tuple[CallerDiff, ...]
    unchanged: int
