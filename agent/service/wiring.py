"""The parts of the agent, each made of its settings and handed its collaborators.

Nothing here is open to callers yet: servers and sockets are the daemon's.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from agent.admin.operations import Site
from agent.api.servers import MAX_CALL_BYTES
from agent.api.workload import METHODS, Issuers, WorkloadApi
from agent.attestation.attestor import WorkloadAttestor
from agent.attestation.plugins import make_attestors
from agent.authority.embedded import EmbeddedAuthority
from agent.authority.keystore import Keystore, KeystoreError
from agent.clock import SystemClock
from agent.config.settings import LogLevel
from agent.config.watch import FileWatch
from agent.entries.load import load_configured_entries, parse_configured_entries
from agent.gate.admission import Admission
from agent.gate.gate import Gate
from agent.kernel.process import boot_id
from agent.limits.fair_queue import FairQueue
from agent.limits.quotas import REASONS, Quotas
from agent.service.policies import authority_policy, identification, limits, serving_policy, spread
from agent.service.reload import CurrentSettings, SettingsReloader
from agent.signals import NO_SIGNALS
from agent.svids.disk_cache import FILE as CACHE_FILE
from agent.svids.disk_cache import KEY_FILE, DiskCache, cache_secret
from agent.svids.jwt import JwtSvids
from agent.svids.x509 import X509Svids
from agent.telemetry.audit import Audit
from agent.telemetry.metrics import Metrics, Words
from agent.workloads.entitlement import Entitlements
from agent.workloads.entry_reload import Audience, EntryReloader
from agent.workloads.refusals import Refusals
from agent.workloads.streams import Streams

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AsyncExitStack

    from structlog.typing import FilteringBoundLogger

    from agent.clock import Clock
    from agent.config.settings import Settings
    from agent.entries.schema import LoadedEntries
    from agent.service.sd_notify import ServiceManager
    from agent.signals import Signals

INNER = "inner.sock"


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """What the daemon needs of the process it runs in.

    `audit` writes whatever the level of the log is. `reread` gives the settings as the file has
    them now; `relog` has the log follow them.
    """

    log: FilteringBoundLogger
    audit: Callable[..., object]
    manager: ServiceManager
    ready: Callable[[str], None]
    reread: Callable[[], Settings]
    relog: Callable[[Settings], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What lives as long as the daemon. `first_watch` sees every change since the first load."""

    in_force: CurrentSettings
    site: Site
    audit: Audit
    gate: Gate
    api: WorkloadApi
    first_watch: FileWatch
    settings: SettingsReloader
    cache: DiskCache | None

    def status(self) -> str:
        """One line for the operator: how much there is, and what of the files is not in force."""
        reload, callers = self.site.reloader.status, self.gate.processes()
        line = f"serving {reload.entries} entries to {callers} callers"
        if self.settings.failure:
            line += f"; settings not reloaded: {self.settings.failure}"
        if reload.problems:
            line += f"; entries not reloaded, the last good ones serve: {reload.problems[0]}"
        return line


async def build(settings: Settings, host: Host, stack: AsyncExitStack) -> Parts:
    """Every part, for as long as `stack` is open.

    Raises:
        StartupError: a part cannot start here.
        ConfigError: the registration entries are wrong.
    """
    in_force, metrics, log = CurrentSettings(settings), _metrics(settings), host.log
    identity = await _identity_side(settings, metrics, log, stack)
    # Before the entries are read, to miss no change.
    first_watch = watch_entries(in_force, log)
    entries = load_configured_entries(settings, identity.clock)
    for warning in entries.warnings:
        log.warning("entry is doubtful", problem=str(warning))
    callers = await _host_side(settings, host, metrics, stack)
    site = _site(in_force, identity, callers, entries, log)
    api = _workload_api(site, settings, callers.audit, log)
    apply = partial(_apply, site, callers, api, host)
    return Parts(
        in_force=in_force,
        site=site,
        audit=callers.audit,
        gate=callers.gate,
        api=api,
        first_watch=first_watch,
        settings=SettingsReloader(in_force, host.reread, apply, metrics, log),
        cache=identity.cache,
    )


def _metrics(settings: Settings) -> Metrics:
    attestors = tuple(settings.attestors)
    return Metrics(
        Words(version=version("vouchd"), attestors=attestors, methods=METHODS, limits=REASONS)
    )


# --- who signs ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _IdentitySide:
    clock: Clock
    authority: EmbeddedAuthority
    cache: DiskCache | None
    svids: X509Svids
    jwt_svids: JwtSvids


async def _identity_side(
    settings: Settings, metrics: Metrics, log: FilteringBoundLogger, stack: AsyncExitStack
) -> _IdentitySide:
    clock, keystore = SystemClock(), Keystore(Path(settings.data_dir))
    stack.callback(keystore.close)
    authority = EmbeddedAuthority.open(authority_policy(settings), keystore, clock, log)
    stack.callback(authority.close)
    await authority.catch_up()
    cache = _open_cache(settings, keystore, authority, clock, log)
    if cache is not None:
        stack.push_async_callback(cache.close)
    ttls = settings.authority
    return _IdentitySide(
        clock=clock,
        authority=authority,
        cache=cache,
        svids=X509Svids(authority, clock, ttls.x509_svid_ttl, spread, log, metrics, cache),
        jwt_svids=JwtSvids(authority, clock, ttls.jwt_svid_ttl, log, metrics),
    )


def _open_cache(
    settings: Settings,
    keystore: Keystore,
    authority: EmbeddedAuthority,
    clock: Clock,
    log: FilteringBoundLogger,
) -> DiskCache | None:
    """The cache of SVIDs, if it is on and can be used. There is no reason not to start without."""
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


# --- who calls ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _HostSide:
    attestor: WorkloadAttestor
    audit: Audit
    gate: Gate
    metrics: Metrics


async def _host_side(
    settings: Settings, host: Host, metrics: Metrics, stack: AsyncExitStack
) -> _HostSide:
    attestor = WorkloadAttestor(
        await make_attestors(settings.attestors, host.log), host.log, metrics
    )
    stack.push_async_callback(attestor.close)
    seconds = asyncio.get_running_loop().time
    audit = Audit(host.audit, boot_id(), attestor.latest, seconds)
    audit.enabled = settings.log.audit
    gate = make_gate(settings, INNER, MAX_CALL_BYTES, audit, host.log, metrics)
    return _HostSide(attestor=attestor, audit=audit, gate=gate, metrics=metrics)


def make_gate(
    settings: Settings,
    inner: str,
    call_bytes: int,
    audit: Audit,
    log: FilteringBoundLogger,
    signals: Signals = NO_SIGNALS,
) -> Gate:
    """A gate in front of the server on the socket `inner` in the data directory."""
    loop, path = asyncio.get_running_loop(), str(Path(settings.data_dir) / inner)
    quotas = Quotas(limits(settings.limits))
    fair_queue = FairQueue(loop, settings.limits.requests_per_second, signals)
    identify = identification(settings)
    admission = Admission(quotas, fair_queue, audit.refused, identify, signals, call_bytes)
    silence = settings.limits.first_request_timeout.total_seconds()
    return Gate(loop, path, admission, log, silence, signals)


# --- both together --------------------------------------------------------------------------------


def _site(
    in_force: CurrentSettings,
    identity: _IdentitySide,
    callers: _HostSide,
    entries: LoadedEntries,
    log: FilteringBoundLogger,
) -> Site:
    clock, metrics, gate, streams = (
        identity.clock,
        callers.metrics,
        callers.gate,
        Streams(identity.clock),
    )
    identity.authority.on_change(lambda kind: streams.wake(lambda stream: stream.kind is kind))
    entitlements = Entitlements(
        callers.attestor, entries.entries, gate.prove_sender, clock, log, metrics
    )
    entitlements.log_each = in_force.settings.log.level is LogLevel.DEBUG

    def load() -> LoadedEntries:
        return load_configured_entries(in_force.settings, clock)

    return Site(
        trust_domain=in_force.settings.trust_domain.name,
        attestors=tuple(sorted(in_force.settings.attestors)),
        authority=identity.authority,
        svids=identity.svids,
        jwt_svids=identity.jwt_svids,
        attestor=callers.attestor,
        entitlements=entitlements,
        streams=streams,
        refusals=Refusals(clock),
        reloader=EntryReloader(load, entitlements, Audience(streams, metrics), clock, log),
        metrics=metrics,
        clock=clock,
        parse=lambda sources: parse_configured_entries(sources, in_force.settings, clock).entries,
        connections=gate,
    )


def _workload_api(
    site: Site, settings: Settings, audit: Audit, log: FilteringBoundLogger
) -> WorkloadApi:
    return WorkloadApi(
        entitlements=site.entitlements,
        issuers=Issuers(authority=site.authority, x509=site.svids, jwt=site.jwt_svids),
        streams=site.streams,
        clock=site.clock,
        policy=serving_policy(settings),
        note_issued=audit.issued,
        log=log,
    )


async def _apply(
    site: Site, callers: _HostSide, api: WorkloadApi, host: Host, settings: Settings
) -> None:
    # First, because it alone can fail.
    await site.authority.adopt(authority_policy(settings))
    host.relog(settings)
    callers.audit.enabled = settings.log.audit
    site.entitlements.log_each = settings.log.level is LogLevel.DEBUG
    callers.gate.admission.identify_peer = identification(settings)
    site.svids.default_ttl = settings.authority.x509_svid_ttl
    site.jwt_svids.default_ttl = settings.authority.jwt_svid_ttl
    api.policy = serving_policy(settings)


def watch_entries(in_force: CurrentSettings, log: FilteringBoundLogger) -> FileWatch:
    """Sees what changes of the entry files in force from now on."""
    return FileWatch(tuple(map(Path, in_force.settings.entries)), log)
