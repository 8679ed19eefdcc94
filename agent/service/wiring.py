"""The composition root: makes the parts of the agent from its settings, and connects them.

Tests that need several parts together use the same functions. Nothing here is open to callers yet:
agent.service.daemon opens the sockets.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from agent.admin.gauges import Gauges
from agent.admin.operations import Operations
from agent.admin.readiness import Readiness
from agent.api.workload import METHODS, STREAMING, WorkloadApi
from agent.attestation.attestor import WorkloadAttestor
from agent.attestation.plugins import make_attestors
from agent.authority.embedded import EmbeddedAuthority
from agent.authority.keystore import Keystore, KeystoreError
from agent.clock import SystemClock
from agent.config.daemon_thread import run_in_daemon_thread
from agent.config.settings import LogLevel
from agent.config.watch import FileWatch
from agent.entries.load import load_configured_entries, parse_by_settings
from agent.gate.admission import Admission
from agent.gate.gate import Gate
from agent.kernel.process import boot_id
from agent.limits.fair_queue import FairQueue
from agent.limits.quotas import REASONS, Quotas
from agent.service.policies import (
    authority_policy,
    connection_times,
    identification,
    limits,
    serving_policy,
    spread,
)
from agent.service.reload import CurrentSettings
from agent.signals import NO_SIGNALS
from agent.svids.disk_cache import FILE as CACHE_FILE
from agent.svids.disk_cache import KEY_FILE, DiskCache, cache_secret
from agent.svids.jwt import JwtSvids
from agent.svids.x509 import X509Svids
from agent.telemetry.audit import Audit
from agent.telemetry.metrics import Metrics, Words
from agent.workloads.entitlement import Entitlements
from agent.workloads.entry_reload import EntryReloader
from agent.workloads.refusals import Refusals
from agent.workloads.streams import Streams

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AsyncExitStack

    from structlog.typing import FilteringBoundLogger

    from agent.api.servers import Api
    from agent.attestation.result import Attested
    from agent.clock import Clock
    from agent.config.settings import Settings
    from agent.config.yaml_document import Source
    from agent.entries.entry import EntrySet
    from agent.entries.schema import LoadedEntries
    from agent.kernel.caller import Caller
    from agent.limits.quotas import Limits
    from agent.service.sd_notify import ServiceManager
    from agent.signals import Signals
    from agent.telemetry.audit import AuditEvent, Issued


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """The process that the daemon runs in.

    `audit` writes whatever the level of the log is. `ready` gets the address of the public socket.
    `reread` reads the settings from their file; `relog` applies theirs to the log. `clock` is that
    of all parts.
    """

    log: FilteringBoundLogger
    audit: Callable[[AuditEvent], object]
    manager: ServiceManager
    ready: Callable[[str], None]
    reread: Callable[[], Settings]
    relog: Callable[[Settings], None]
    clock: Clock = field(default_factory=SystemClock)


@dataclass(frozen=True, slots=True, kw_only=True)
class Issuing:
    """The authority, and the SVIDs that it signs."""

    authority: EmbeddedAuthority
    x509_svids: X509Svids
    jwt_svids: JwtSvids
    cache: DiskCache | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The parts of the agent. `first_watch` reports every change since before the first load."""

    current: CurrentSettings
    issuing: Issuing
    attestor: WorkloadAttestor
    streams: Streams
    entitlements: Entitlements
    refusals: Refusals
    reloader: EntryReloader
    first_watch: FileWatch
    gate: Gate
    audit: Audit
    metrics: Metrics
    api: WorkloadApi
    clock: Clock

    async def apply(self, settings: Settings) -> None:
        """Give new settings to the parts that use them.

        Raises:
            KeystoreError: the authority cannot store them; nothing has changed then.
        """
        await self.issuing.authority.adopt(authority_policy(settings))
        self.audit.enabled = settings.log.audit
        self.entitlements.log_each = settings.log.level is LogLevel.DEBUG
        self.gate.admission.identify_peer = identification(settings)
        self.issuing.x509_svids.default_ttl = settings.authority.x509_svid_ttl
        self.issuing.jwt_svids.default_ttl = settings.authority.jwt_svid_ttl
        self.api.policy = serving_policy(settings)

    @property
    def public_apis(self) -> tuple[Api, ...]:
        """Every gRPC service on the public socket, besides health and reflection."""
        return (self.api,)

    def operations(self) -> Operations:
        """Make the operations of the admin API on these parts."""
        return Operations(
            trust_domain=self.current.settings.trust_domain.name,
            attestors=tuple(sorted(self.current.settings.attestors)),
            authority=self.issuing.authority,
            x509_svids=self.issuing.x509_svids,
            jwt_svids=self.issuing.jwt_svids,
            attestor=self.attestor,
            entitlements=self.entitlements,
            streams=self.streams,
            refusals=self.refusals,
            reloader=self.reloader,
            metrics=self.metrics,
            clock=self.clock,
            parse=self._parse_entries,
            connections=self.gate,
        )

    def readiness(self) -> Readiness:
        """Make the readiness of these parts."""
        return Readiness(self.issuing.authority, self.gate)

    def gauges(self, readiness: Readiness) -> Gauges:
        """Make the gauges of these parts."""
        return Gauges(
            readiness=readiness,
            authority=self.issuing.authority,
            x509_svids=self.issuing.x509_svids,
            jwt_svids=self.issuing.jwt_svids,
            streams=self.streams,
            gate=self.gate,
            streaming=STREAMING,
        )

    def _parse_entries(self, sources: Sequence[Source]) -> EntrySet:
        return parse_by_settings(sources, self.current.settings, self.clock).entries


async def build(settings: Settings, host: Host, stack: AsyncExitStack) -> Parts:
    """Make every part, for as long as `stack` is open.

    Raises:
        StartupError: a part cannot start here.
        ConfigError: the registration entries are wrong.
    """
    current, clock, log = CurrentSettings(settings), host.clock, host.log
    metrics = make_metrics(settings)
    issuing = await _open_issuing(settings, clock, log, metrics, stack)
    # Before the entries are read: no change is missed.
    first_watch = watch_entries(current, log)
    stack.callback(first_watch.close)
    await first_watch.start()
    entries = await run_in_daemon_thread(partial(load_configured_entries, settings, clock))
    for warning in entries.warnings:
        log.warning("entry has a warning", problem=str(warning))
    attestor = WorkloadAttestor(await make_attestors(settings.attestors, log), log, metrics)
    stack.push_async_callback(attestor.close)
    audit = Audit(host.audit, boot_id(), attestor.latest, asyncio.get_running_loop().time)
    audit.enabled = settings.log.audit
    gate = make_gate(settings, limits(settings.limits), audit, log, metrics)
    entitlements = Entitlements(attestor, entries.entries, gate.prove_sender, clock, log, metrics)
    entitlements.log_each = settings.log.level is LogLevel.DEBUG
    streams = make_streams(issuing.authority, clock)

    def load() -> LoadedEntries:
        return load_configured_entries(current.settings, clock)

    return Parts(
        current=current,
        issuing=issuing,
        attestor=attestor,
        streams=streams,
        entitlements=entitlements,
        refusals=Refusals(clock),
        reloader=EntryReloader(load, entitlements, streams, metrics, clock, log),
        first_watch=first_watch,
        gate=gate,
        audit=audit,
        metrics=metrics,
        api=make_workload_api(settings, issuing, entitlements, streams, clock, audit.issued, log),
        clock=clock,
    )


def make_metrics(settings: Settings) -> Metrics:
    """Make the metrics, with the label values of these settings."""
    attestors = tuple(settings.attestors)
    return Metrics(
        Words(version=version("vouchd"), attestors=attestors, methods=METHODS, limits=REASONS)
    )


# --- signing --------------------------------------------------------------------------------------


async def _open_issuing(
    settings: Settings,
    clock: Clock,
    log: FilteringBoundLogger,
    metrics: Metrics,
    stack: AsyncExitStack,
) -> Issuing:
    keystore = Keystore(Path(settings.data_dir))
    stack.callback(keystore.close)
    authority = EmbeddedAuthority.open(authority_policy(settings), keystore, clock, log)
    stack.callback(authority.close)
    await authority.take_due_steps()
    cache = _open_cache(settings, keystore, authority, clock, log)
    if cache is not None:
        stack.push_async_callback(cache.close)
    return make_issuing(settings, authority, clock, log, metrics, cache)


def make_issuing(
    settings: Settings,
    authority: EmbeddedAuthority,
    clock: Clock,
    log: FilteringBoundLogger,
    signals: Signals = NO_SIGNALS,
    cache: DiskCache | None = None,
    spread: Callable[[], float] = spread,
) -> Issuing:
    """Connect the SVIDs with the authority that signs them."""
    ttls = settings.authority
    return Issuing(
        authority=authority,
        x509_svids=X509Svids(authority, clock, ttls.x509_svid_ttl, spread, log, signals, cache),
        jwt_svids=JwtSvids(authority, clock, ttls.jwt_svid_ttl, log, signals),
        cache=cache,
    )


def _open_cache(
    settings: Settings,
    keystore: Keystore,
    authority: EmbeddedAuthority,
    clock: Clock,
    log: FilteringBoundLogger,
) -> DiskCache | None:
    """Open the disk cache of SVIDs if it is on. The agent starts without it if that fails."""
    try:
        if not settings.svid_cache:
            keystore.remove(CACHE_FILE)
            keystore.remove(KEY_FILE)
            return None
        credentials = os.environ.get("CREDENTIALS_DIRECTORY")
        secret = cache_secret(keystore, Path(credentials) if credentials else None)
    except KeystoreError as error:
        log.warning("svid cache not used", reason=str(error))
        return None
    cache = DiskCache(keystore, secret, lambda: authority.bundle, clock, log)
    cache.load()
    return cache


# --- callers --------------------------------------------------------------------------------------


def make_gate(
    settings: Settings,
    limits: Limits,
    audit: Audit,
    log: FilteringBoundLogger,
    signals: Signals = NO_SIGNALS,
) -> Gate:
    """Make a gate with these sizes of its quotas."""
    loop = asyncio.get_running_loop()
    admission = Admission(
        Quotas(limits),
        FairQueue(loop, settings.limits.requests_per_second, signals),
        audit.refused,
        identification(settings),
        signals,
    )
    return Gate(loop, admission, log, signals, connection_times(settings.limits))


# --- serving --------------------------------------------------------------------------------------


def make_streams(authority: EmbeddedAuthority, clock: Clock) -> Streams:
    """Make the open streams: a change of an authority wakes those that show its kind."""
    streams = Streams(clock)
    authority.on_change(lambda kind: streams.wake(lambda stream: stream.kind is kind))
    return streams


def make_workload_api(
    settings: Settings,
    issuing: Issuing,
    entitlements: Entitlements,
    streams: Streams,
    clock: Clock,
    note_issued: Callable[[Caller, Issued, Attested | None], None],
    log: FilteringBoundLogger,
) -> WorkloadApi:
    """Connect the Workload API with the entitlements and the SVIDs."""
    return WorkloadApi(
        entitlements=entitlements,
        authority=issuing.authority,
        x509_svids=issuing.x509_svids,
        jwt_svids=issuing.jwt_svids,
        streams=streams,
        clock=clock,
        policy=serving_policy(settings),
        note_issued=note_issued,
        log=log,
    )


def watch_entries(current: CurrentSettings, log: FilteringBoundLogger) -> FileWatch:
    """Watch the entry files of the settings in force, from now on."""
    return FileWatch(tuple(map(Path, current.settings.entries)), log)
