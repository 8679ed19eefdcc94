"""What an operator may ask of a running agent, and have it do. No answer holds a private key."""

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
from agent.errors import ConfigError, PeerError, RequestError
from agent.kernel.inspect import facts_of, process_by_pid

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from datetime import datetime

    from agent.attestation.attestor import WorkloadAttestor
    from agent.attestation.result import Attested, Report
    from agent.authority.authority_set import JwtAuthority, X509Authority
    from agent.authority.embedded import EmbeddedAuthority
    from agent.authority.rotation import Step
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

# Of a user who is refused all the time, the last few say as much as all.
SHOWN_REFUSALS = 10

_OF_SUCCESSORS = {
    Event.PREPARE: "prepare successor",
    Event.ACTIVATE: "retire",
    Event.EXPIRE: "prepare successor",
}


LOCKED_OUT = "its user is locked out of the socket: it connected and hung up again and again"


class Connections(Protocol):
    """Those that are open, and who may not make one."""

    def __len__(self) -> int:
        """How many are open."""
        ...

    @property
    def locked_out(self) -> Collection[int]:
        """The users whom the socket refuses just now."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """What the administration looks at. `parse` judges entry files that are not in force."""

    trust_domain: str
    attestors: tuple[str, ...]
    authority: EmbeddedAuthority
    svids: X509Svids
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
    started_at: datetime = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "started_at", self.clock.now())


class Operations:
    """Answers operators."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._version = version(
            "vouchd"
        )  # reads a file, for which there may be no descriptor later

    # --- looking ---------------------------------------------------------------------------------

    def status(self) -> Status:
        """Everything at a glance."""
        site, reload = self._site, self._site.reloader.status
        return Status(
            version=self._version,
            trust_domain=site.trust_domain,
            started_at=site.started_at,
            authority=self.authorities(),
            entries=EntriesStatus(
                loaded=reload.entries,
                loaded_at=reload.loaded_at,
                tried_at=reload.tried_at,
                problems=tuple(map(str, reload.problems)),
            ),
            attestors=site.attestors,
            connections=len(site.connections),
            x509_svids=len(site.svids),
            jwt_svids=len(site.jwt_svids),
            callers=self._connected(),
            locked_out_uids=tuple(sorted(site.connections.locked_out)),
        )

    def authorities(self) -> AuthorityList:
        """All authorities, with what comes next."""
        authority = self._site.authority
        return AuthorityList(
            bundle_sequence=authority.bundle.sequence,
            authorities=tuple(
                _authority_status(each, authority.next_steps) for each in authority.authorities.all
            ),
            failure=authority.failure,
        )

    def metrics(self) -> str:
        """All metrics in the Prometheus text format."""
        return self._site.metrics.text()

    async def explain(self, pid: int) -> Explanation:
        """Why the process that has this PID now gets, or does not get, each identity.

        Raises:
            PeerGoneError: there is none.
        """
        if connected := self._connected_as(pid):
            return await self._explain(connected, facts_of(connected))
        with closing(process_by_pid(pid)) as caller:
            facts = {**facts_of(caller), "proof": "not connected"}
            found = await self._explain(caller, facts)
            if caller.credentials.uid in self._site.connections.locked_out:
                return replace(found, refused=LOCKED_OUT)
            return found

    async def _explain(self, caller: Caller, process: Mapping[str, Any]) -> Explanation:
        pid, uid = caller.credentials.pid, caller.credentials.uid
        said: dict[str, Any] = {
            "process": process,
            "served": self._served(pid),
            "refusals": self._site.refusals.of(pid, uid)[:SHOWN_REFUSALS],
        }
        try:
            async with self._site.attestor.attest(caller) as attestation:
                verdict = self._site.entitlements.explain(attestation)
        except PeerError as error:
            return Explanation(refused=str(error), **said)
        return Explanation(
            attestors=tuple(map(_report, attestation.reports)),
            verdict=verdict,
            refused=_unavailable(attestation, verdict),
            **said,
        )

    async def diff(self, sources: Sequence[Source]) -> EntriesDiff:
        """What these entry files would change for those who are connected.

        Raises:
            RequestError: the files have mistakes.
        """
        try:
            entries = await asyncio.to_thread(self._site.parse, sources)
        except ConfigError as error:
            raise RequestError(str(error)) from error
        diffs = [
            _difference(stream.caller, self._now(stream.caller, known), then.identities)
            for stream in self._site.streams.latest()
            if stream.entitlement and (known := stream.entitlement.attestation)
            for then in [self._site.entitlements.matches(stream.caller, known, entries)]
        ]
        changed = tuple(diff for diff in diffs if diff.gained or diff.lost)
        return EntriesDiff(changed=changed, unchanged=len(diffs) - len(changed))

    # --- doing -----------------------------------------------------------------------------------

    async def prepare(self, kind: str) -> AuthorityStatus:
        """Make a successor now."""
        return self._authority(await self._site.authority.prepare(_kind(kind)))

    async def activate(self, kind: str) -> AuthorityStatus:
        """Have the successor sign now."""
        return self._authority(await self._site.authority.activate(_kind(kind)))

    async def taint(self, authority_id: str) -> AuthorityStatus:
        """Replace at once what this authority signed."""
        await self._site.authority.taint(authority_id)
        return self._authority(authority_id)

    async def revoke(self, authority_id: str) -> AuthorityList:
        """Take a tainted authority out of the bundle; the ones that are left."""
        await self._site.authority.revoke(authority_id)
        return self.authorities()

    # --- parts -----------------------------------------------------------------------------------

    def _authority(self, authority_id: str) -> AuthorityStatus:
        return next(a for a in self.authorities().authorities if a.id == authority_id)

    def _connected(self) -> tuple[ConnectedCaller, ...]:
        streams: defaultdict[Caller, list[OpenStream]] = defaultdict(list)
        for stream in self._site.streams.streams:
            streams[stream.caller].append(stream)
        callers = self._site.streams.callers()
        return tuple(self._connected_caller(each, streams[each]) for each in callers)

    def _connected_caller(self, caller: Caller, streams: Sequence[OpenStream]) -> ConnectedCaller:
        shown_now = [s.entitlement.identities for s in streams if s.entitlement is not None]
        last = [each.identities for each in self._site.streams.served(caller)]
        identities = tuple(dict.fromkeys(i for each in shown_now or last for i in each))
        svids = [svid for each in identities if (svid := self._site.svids.known(each))]
        return ConnectedCaller(
            pid=caller.credentials.pid,
            uid=caller.credentials.uid,
            since=min((stream.since for stream in streams), default=None),
            spiffe_ids=tuple(str(identity.spiffe_id) for identity in identities),
            streams=tuple(stream.method for stream in streams),
            next_renewal=min((svid.renew_at for svid in svids), default=None),
        )

    def _connected_as(self, pid: int) -> Caller | None:
        callers = self._site.streams.callers()
        return next((each for each in callers if each.credentials.pid == pid), None)

    def _served(self, pid: int) -> tuple[Served, ...]:
        """What a process was given by all its connections."""
        streams = self._site.streams
        return tuple(
            Served(
                at=each.at,
                method=each.method,
                spiffe_ids=tuple(str(identity.spiffe_id) for identity in each.identities),
            )
            for connected in streams.callers()
            if connected.credentials.pid == pid
            for each in streams.served(connected)
        )

    def _now(self, caller: Caller, attestation: Attested) -> tuple[Identity, ...]:
        return self._site.entitlements.matches(caller, attestation).identities


def _authority_status(
    authority: X509Authority | JwtAuthority, steps: Sequence[Step]
) -> AuthorityStatus:
    step = next((step for step in steps if step.authority_id == authority.id), None)
    event = "" if step is None else str(step.event)
    if authority.state is State.ACTIVE:
        # What happens to it is what happens to its successor.
        step = next(s for s in steps if s.kind is authority.kind and s.event in _OF_SUCCESSORS)
        event = _OF_SUCCESSORS[step.event]
    return AuthorityStatus(
        id=authority.id,
        kind=authority.kind,
        state=authority.state,
        since=authority.since,
        not_after=authority.not_after,
        next_step=event,
        next_step_at=None if step is None else step.at,
    )


def _kind(name: str) -> AuthorityKind:
    try:
        return AuthorityKind(name)
    except ValueError as error:
        raise RequestError(f"{name!r} is no kind of authority: x509 or jwt") from error


def _report(report: Report) -> AttestorReport:
    return AttestorReport(
        attestor=report.attestor,
        milliseconds=round(report.seconds * 1000, 3),
        remembered=report.remembered,
        selectors=tuple(sorted(each.redacted() for each in report.findings.selectors)),
        notes=report.findings.notes,
        failure=report.failure or "",
    )


def _unavailable(attestation: Attested, verdict: Verdict) -> str:
    if verdict.matched or not attestation.failures:
        return ""
    return "nothing matches while an attestor fails, so that the process is asked to try again"


def _difference(caller: Caller, now: Sequence[Identity], then: Sequence[Identity]) -> CallerDiff:
    before, after = ([str(identity.spiffe_id) for identity in each] for each in (now, then))
    return CallerDiff(
        pid=caller.credentials.pid,
        uid=caller.credentials.uid,
        gained=tuple(each for each in after if each not in before),
        lost=tuple(each for each in before if each not in after),
    )
