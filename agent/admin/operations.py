"""The operations of the admin API on a running agent. No report holds a private key."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from contextlib import closing
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Protocol

from agent.admin.reports import (
    AttestorReport,
    AuthorityList,
    AuthorityStatus,
    CallerDiff,
    ConnectedCaller,
    EntriesDiff,
    EntriesStatus,
    Explanation,
    Served,
    Status,
)
from agent.authority.authority_set import AuthorityKind, State
from agent.authority.rotation import Event
from agent.errors import ConfigError, NotFoundError, PeerError, PeerGoneError, RequestError
from agent.kernel.inspect import facts_of, process_by_pid

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from datetime import datetime

    from agent.attestation.attestor import WorkloadAttestor
    from agent.attestation.result import Attested, Report
    from agent.authority.authority_set import JwtAuthority, X509Authority
    from agent.authority.rotation import Step
    from agent.authority.signer import ManagedAuthority
    from agent.clock import Clock
    from agent.config.yaml_document import Source
    from agent.entries.entry import EntrySet
    from agent.entries.explain import Verdict
    from agent.entries.identity import Identity
    from agent.kernel.caller import Caller
    from agent.svids.jwt import JwtSvids
    from agent.svids.x509 import X509Svids
    from agent.telemetry.metrics import Metrics
    from agent.workloads.entitlement import Entitlements
    from agent.workloads.entry_reload import EntryReloader
    from agent.workloads.refusals import Refusals
    from agent.workloads.streams import OpenStream, Streams

# The last refusals of a user that is refused all the time say as much as all of them.
SHOWN_REFUSALS = 10

# The next step of an active authority, by the next step of its kind.
_STEPS_OF_ACTIVE = {
    Event.PREPARE: "prepare successor",
    Event.ACTIVATE: "retire",
    Event.EXPIRE: "prepare successor",
}

NOT_CONNECTED = "not connected: read by PID, for display only"
LOCKED_OUT = "its user is locked out of the socket: it connected and hung up again and again"


class Connections(Protocol):
    """The open connections, and the users that may not open one."""

    def __len__(self) -> int:
        """Return the number of open connections."""
        ...

    @property
    def locked_out(self) -> Collection[int]:
        """The users locked out of the socket now."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Operations:
    """Reads the state of the agent, and changes its authorities.

    `parse` reads entry files that are not in force, and may take seconds.
    """

    trust_domain: str
    attestors: tuple[str, ...]
    authority: ManagedAuthority
    x509_svids: X509Svids
    jwt_svids: JwtSvids
    attestor: WorkloadAttestor
    entitlements: Entitlements
    streams: Streams
    refusals: Refusals
    reloader: EntryReloader
    metrics: Metrics
    clock: Clock
    parse: Callable[[Sequence[Source]], EntrySet]
    connections: Connections
    # Read at the start: later there may be no descriptor left for the file.
    version: str = field(default_factory=lambda: version("vouchd"))
    started_at: datetime = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "started_at", self.clock.now())

    # --- reads -----------------------------------------------------------------------------------

    def status(self) -> Status:
        """Return the state of the agent: authorities, entries, callers."""
        reload = self.reloader.status
        return Status(
            version=self.version,
            trust_domain=self.trust_domain,
            started_at=self.started_at,
            authority=self.authorities(),
            entries=EntriesStatus(
                loaded=reload.entries,
                loaded_at=reload.loaded_at,
                tried_at=reload.tried_at,
                problems=tuple(map(str, reload.problems)),
            ),
            attestors=self.attestors,
            connections=len(self.connections),
            x509_svids=len(self.x509_svids),
            jwt_svids=len(self.jwt_svids),
            callers=self._connected_callers(),
            locked_out_uids=tuple(sorted(self.connections.locked_out)),
        )

    def authorities(self) -> AuthorityList:
        """Return all authorities, each with its next step."""
        authority = self.authority
        return AuthorityList(
            bundle_sequence=authority.bundle.sequence,
            authorities=tuple(
                _authority_status(each, authority.next_steps) for each in authority.authorities.all
            ),
            failure=authority.failure,
        )

    def metrics_text(self) -> str:
        """Return all metrics in the Prometheus text format."""
        return self.metrics.text()

    async def explain(self, pid: int) -> Explanation:
        """Explain why the process that has this PID now gets, or does not get, each identity.

        Raises:
            NotFoundError: there is no such process.
        """
        try:
            if connected := self._connected_as(pid):
                return await self._explain(connected, facts_of(connected))
            with closing(process_by_pid(pid)) as caller:
                # A weakness is one of the proof of a connection, and there is none.
                facts = {**facts_of(caller), "proof": NOT_CONNECTED, "weaknesses": ()}
                explanation = await self._explain(caller, facts)
        except PeerGoneError as error:
            raise NotFoundError(str(error)) from error
        if caller.credentials.uid in self.connections.locked_out:
            return replace(explanation, refused=LOCKED_OUT)
        return explanation

    async def _explain(self, caller: Caller, process: Mapping[str, Any]) -> Explanation:
        pid, uid = caller.credentials.pid, caller.credentials.uid
        history: dict[str, Any] = {
            "process": process,
            "served": self._served(pid),
            "refusals": self.refusals.of(pid, uid)[:SHOWN_REFUSALS],
        }
        try:
            async with self.attestor.attest(caller) as attestation:
                verdict = self.entitlements.explain(attestation)
        except PeerError as error:
            return Explanation(refused=str(error), **history)
        return Explanation(
            attestors=tuple(map(_attestor_report, attestation.reports)),
            verdict=verdict,
            refused=_unavailable(attestation, verdict),
            **history,
        )

    async def diff(self, sources: Sequence[Source]) -> EntriesDiff:
        """Return the identities that connected callers would gain and lose by these entry files.

        Raises:
            RequestError: the files have mistakes.
        """
        try:
            entries = await asyncio.to_thread(self.parse, sources)
        except ConfigError as error:
            raise RequestError(str(error)) from error
        diffs = [
            self._diff(stream.caller, attestation, entries)
            for stream in self.streams.latest()
            if stream.entitlement and (attestation := stream.entitlement.attestation)
        ]
        changed = tuple(diff for diff in diffs if diff.gained or diff.lost)
        return EntriesDiff(changed=changed, unchanged=len(diffs) - len(changed))

    def _diff(self, caller: Caller, attestation: Attested, entries: EntrySet) -> CallerDiff:
        now = self.entitlements.matches(caller, attestation).identities
        then = self.entitlements.matches(caller, attestation, entries).identities
        return _difference(caller, now, then)

    # --- commands --------------------------------------------------------------------------------

    async def prepare(self, kind: str) -> AuthorityStatus:
        """Make a successor now."""
        return self._authority(await self.authority.prepare(_kind(kind)))

    async def activate(self, kind: str) -> AuthorityStatus:
        """Let the successor sign now."""
        return self._authority(await self.authority.activate(_kind(kind)))

    async def taint(self, authority_id: str) -> AuthorityStatus:
        """Replace at once every SVID that this authority signed."""
        await self.authority.taint(authority_id)
        return self._authority(authority_id)

    async def revoke(self, authority_id: str) -> AuthorityList:
        """Take a tainted authority out of the bundle, and return the others."""
        await self.authority.revoke(authority_id)
        return self.authorities()

    # --- connected callers -----------------------------------------------------------------------

    def _authority(self, authority_id: str) -> AuthorityStatus:
        return next(a for a in self.authorities().authorities if a.authority_id == authority_id)

    def _connected_callers(self) -> tuple[ConnectedCaller, ...]:
        streams: defaultdict[Caller, list[OpenStream]] = defaultdict(list)
        for stream in self.streams.open:
            streams[stream.caller].append(stream)
        return tuple(self._connected_caller(c, streams[c]) for c in self.streams.callers())

    def _connected_caller(self, caller: Caller, streams: Sequence[OpenStream]) -> ConnectedCaller:
        shown_now = [s.entitlement.identities for s in streams if s.entitlement is not None]
        served = [each.identities for each in self.streams.served(caller)]
        identities = tuple(dict.fromkeys(i for each in shown_now or served for i in each))
        svids = [svid for each in identities if (svid := self.x509_svids.known(each))]
        return ConnectedCaller(
            pid=caller.credentials.pid,
            uid=caller.credentials.uid,
            since=min((stream.since for stream in streams), default=None),
            spiffe_ids=_ids(identities),
            streams=tuple(stream.method for stream in streams),
            next_renewal=min((svid.renew_at for svid in svids), default=None),
        )

    def _connected_as(self, pid: int) -> Caller | None:
        callers = self.streams.callers()
        return next((each for each in callers if each.credentials.pid == pid), None)

    def _served(self, pid: int) -> tuple[Served, ...]:
        """Return the identities served last to a process, over all its connections."""
        return tuple(
            Served(at=each.at, method=each.method, spiffe_ids=_ids(each.identities))
            for caller in self.streams.callers()
            if caller.credentials.pid == pid
            for each in self.streams.served(caller)
        )


def _authority_status(
    authority: X509Authority | JwtAuthority, steps: Sequence[Step]
) -> AuthorityStatus:
    step = next((step for step in steps if step.authority_id == authority.id), None)
    event = "" if step is None else str(step.event)
    if authority.state is State.ACTIVE:
        # Steps name the successor; the active authority retires by them.
        step = next(s for s in steps if s.kind is authority.kind and s.event in _STEPS_OF_ACTIVE)
        event = _STEPS_OF_ACTIVE[step.event]
    return AuthorityStatus(
        authority_id=authority.id,
        kind=authority.kind,
        state=authority.state,
        since=authority.since,
        expires_at=authority.not_after,
        next_step=event,
        next_step_at=None if step is None else step.at,
    )


def _kind(name: str) -> AuthorityKind:
    try:
        return AuthorityKind(name)
    except ValueError as error:
        raise RequestError(f"{name!r} is no kind of authority: x509 or jwt") from error


def _attestor_report(report: Report) -> AttestorReport:
    return AttestorReport(
        attestor=report.attestor,
        duration_seconds=round(report.seconds, 6),
        remembered=report.remembered,
        selectors=tuple(sorted(each.redacted() for each in report.findings.selectors)),
        notes=report.findings.notes,
        failure=report.failure or "",
    )


def _unavailable(attestation: Attested, verdict: Verdict) -> str:
    if verdict.matched or not attestation.failures:
        return ""
    return "no entry matches while an attestor fails: the process gets UNAVAILABLE and may retry"


def _difference(caller: Caller, now: Sequence[Identity], then: Sequence[Identity]) -> CallerDiff:
    before, after = _ids(now), _ids(then)
    return CallerDiff(
        pid=caller.credentials.pid,
        uid=caller.credentials.uid,
        gained=tuple(each for each in after if each not in before),
        lost=tuple(each for each in before if each not in after),
    )


def _ids(identities: Sequence[Identity]) -> tuple[str, ...]:
    return tuple(str(identity.spiffe_id) for identity in identities)
