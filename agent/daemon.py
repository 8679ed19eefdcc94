"""The composition root: builds every part, hands each its collaborators, starts and stops them.

Start: data directory, authority, entries, attestors, gRPC servers, and the public socket last, so
that nobody can connect before there is somebody to answer. Stop: the other way round (agent.front).
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from agent.activation import take_sockets
from agent.administration import Administration, Site
from agent.admission import REASONS, Admission, Limits
from agent.api.admin import AdminApi, Administrators
from agent.api.context import Guard
from agent.api.servers import make_admin_server, make_workload_server
from agent.api.workload import (
    METHODS,
    STREAMING,
    Issuers,
    Review,
    ServingPolicy,
    WorkloadApi,
)
from agent.attestation import WorkloadAttestor
from agent.audit import Audit
from agent.authority import Authority, AuthorityPolicy
from agent.clock import SystemClock
from agent.condition import Condition
from agent.door import Door
from agent.entitlement import Entitlements
from agent.entry_yaml import parse_entries
from agent.files import load_entries
from agent.front import Front
from agent.gate import Gate
from agent.jwt_svids import JwtSvids
from agent.keystore import Keystore, KeystoreError
from agent.listener import Listener, SocketFile, group_id
from agent.metrics import Metrics, Words
from agent.peer import boot_id, identify
from agent.plugins import make_attestors
from agent.process import prepare_process
from agent.refusals import Refusals
from agent.reloading import Audience, EntryReloader
from agent.resetting import InForce, SettingsReloader, follow
from agent.roster import Roster
from agent.signals import UNHEARD
from agent.svid_cache import FILE as CACHE_FILE
from agent.svid_cache import KEY_FILE, SvidCache, cache_secret
from agent.svids import Svids
from agent.turnstile import Turnstile
from agent.watching import FileWatch

new_event_loop: Callable[[], asyncio.AbstractEventLoop]
try:
    from uvloop import new_event_loop
except ImportError:  # there is no wheel for this machine
    from asyncio import new_event_loop

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence
    from pathlib import PurePath

    from structlog.typing import FilteringBoundLogger

    from agent.activation import ActivatedListener
    from agent.audit import RefusedCall
    from agent.clock import Clock
    from agent.config import LimitSettings, Settings
    from agent.entry_yaml import LoadedEntries
    from agent.located import Source
    from agent.peer import Caller
    from agent.service_manager import ServiceManager
    from agent.signals import Signals
    from attestors.api import Attestor

# The names that socket units give what they pass (FileDescriptorName=).
AGENT, ADMIN = "agent", "admin"
INNER = "inner.sock"
ADMIN_INNER = "admin-inner.sock"
ADMIN_MODE = 0o600
ADMIN_GROUP_MODE = 0o660


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """What the daemon needs of the process it runs in.

    `audit` writes whatever the level of the log is. `reread` gives the settings as the file has
    them now; `relog` has the log follow them.
    """

    log: FilteringBoundLogger
    audit: FilteringBoundLogger
    manager: ServiceManager
    ready: Callable[[str], None]
    reread: Callable[[], Settings]
    relog: Callable[[Settings], None]


def run(settings: Settings, host: Host) -> None:
    """Serve until SIGTERM or SIGINT. `host.ready` is called with the socket's address.

    Raises:
        StartupError: the daemon cannot start here.
        ConfigError: the registration entries are wrong.
    """
    prepare_process(settings.limits.connections, host.log)
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(serve(settings, host))


async def serve(settings: Settings, host: Host) -> None:
    """See `run`."""
    stop, hang_up = asyncio.Event(), asyncio.Event()
    async with AsyncExitStack() as stack:
        _handle_signals(stop, hang_up)
        parts = await _start(settings, host, stack)
        host.ready(f"unix://{settings.socket_path}")
        host.log.info(
            "serving",
            trust_domain=str(settings.trust_domain),
            entries=parts.site.reloader.status.entries,
            attestors=sorted(settings.attestors),
            authority="created" if parts.site.authority.created else "loaded",
        )
        host.manager.tell(READY=1, STATUS=parts.status())
        async with asyncio.TaskGroup() as tasks:
            endless = [
                tasks.create_task(parts.site.svids.run(), name="svid renewal"),
                tasks.create_task(parts.site.authority.run(), name="authority rotation"),
                tasks.create_task(parts.site.roster.run(), name="ends of entries"),
                tasks.create_task(_reload(parts, host, hang_up), name="reload"),
                tasks.create_task(host.manager.follow(parts.status), name="status"),
                tasks.create_task(host.manager.feed_watchdog(), name="watchdog"),
            ]
            if parts.cache is not None:
                endless.append(tasks.create_task(parts.cache.run(), name="svid cache"))
            await stop.wait()
            host.manager.tell(STOPPING=1, STATUS="stopping")
            for task in endless:
                task.cancel()
    host.log.info("stopped")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parts:
    """What lives as long as the daemon. `first_watch` sees every change since the first load."""

    in_force: InForce
    site: Site
    audit: Audit
    gate: Gate
    api: WorkloadApi
    first_watch: FileWatch
    settings: SettingsReloader
    cache: SvidCache | None

    def status(self) -> str:
        """One line for the operator: how much there is, and what of the files is not in force."""
        reload, callers = self.site.reloader.status, len(self.gate)
        line = f"serving {reload.entries} entries to {callers} callers"
        if self.settings.failure:
            line += f"; settings not reloaded: {self.settings.failure}"
        if reload.problems:
            line += f"; entries not reloaded, the last good ones serve: {reload.problems[0]}"
        return line


async def _start(settings: Settings, host: Host, stack: AsyncExitStack) -> _Parts:
    passed = _take_sockets(settings, stack)
    parts = await _build(settings, host, stack)
    data_dir, site = Path(settings.data_dir), parts.site
    if settings.admin_socket_path is not None:
        gate = _gate(settings, ADMIN_INNER, parts.audit, host.log)
        admin = AdminApi(Administration(site), _administrators(settings), gate, host.log)
        server = make_admin_server(admin, data_dir / ADMIN_INNER)
        file = _admin_socket(settings.admin_socket_path, settings)
        listener = passed.get(ADMIN) or Listener(file)
        await _open(Front(gate=gate, server=server, listener=listener), stack)
    await _expose(settings, parts, host.log, stack)
    admission, note = parts.gate.door.admission, partial(_note_refused_call, parts)
    guard = Guard(parts.gate, admission, note, host.log, site.metrics)
    server = await make_workload_server(parts.api, guard, parts.gate, data_dir / INNER)
    listener = passed.get(AGENT) or Listener(_public_socket(settings))
    end_streams = site.roster.close
    front = Front(gate=parts.gate, server=server, listener=listener, end_streams=end_streams)
    await _open(front, stack)
    return parts


def _note_refused_call(parts: _Parts, caller: Caller | None, refusal: RefusedCall) -> None:
    parts.audit.refused(caller, refusal)
    if caller is not None:
        parts.site.refusals.note(
            caller.credentials, refusal.request, refusal.status, refusal.reason
        )


async def _build(settings: Settings, host: Host, stack: AsyncExitStack) -> _Parts:
    clock, in_force, log = SystemClock(), InForce(settings), host.log
    keystore = Keystore(Path(settings.data_dir))
    stack.callback(keystore.close)
    authority = await _open_authority(settings, keystore, clock, log, stack)
    cache = _open_cache(settings, keystore, authority, clock, log)
    if cache is not None:
        stack.push_async_callback(cache.close)
    first_watch = _watch(in_force, log)
    entries = load_configured_entries(settings, clock)
    for warning in entries.warnings:
        log.warning("entry is doubtful", problem=str(warning))
    attestors = make_attestors(settings, log)
    metrics = _metrics(attestors)
    attestor = WorkloadAttestor(attestors, log, metrics)
    stack.push_async_callback(attestor.close)
    seconds = asyncio.get_running_loop().time
    audit = Audit(host.audit.info, boot_id(), attestor.latest, seconds)
    audit.enabled = settings.log.audit
    roster, gate = Roster(clock), _gate(settings, INNER, audit, log, metrics)
    authority.on_change(lambda kind: roster.wake(lambda stream: stream.kind is kind))
    entitlements = Entitlements(attestor, entries.entries, gate.prove_sender, clock, log, metrics)
    site = Site(
        trust_domain=settings.trust_domain.name,
        attestors=tuple(sorted(settings.attestors)),
        authority=authority,
        svids=Svids(
            authority, clock, settings.authority.x509_svid_ttl, _spread, log, metrics, cache
        ),
        jwt_svids=JwtSvids(authority, clock, settings.authority.jwt_svid_ttl, log, metrics),
        attestor=attestor,
        entitlements=entitlements,
        roster=roster,
        refusals=Refusals(clock),
        reloader=EntryReloader(
            lambda: load_configured_entries(in_force.settings, clock),
            entitlements,
            Audience(roster, metrics),
            clock,
            log,
        ),
        metrics=metrics,
        clock=clock,
        parse=lambda sources: parse_configured_entries(sources, in_force.settings, clock).entries,
        count_connections=lambda: len(gate),
    )
    api = _workload_api(site, settings, audit, log)
    apply = partial(_apply, site, audit, gate, api, host)
    return _Parts(
        in_force=in_force,
        site=site,
        audit=audit,
        gate=gate,
        api=api,
        first_watch=first_watch,
        settings=SettingsReloader(in_force, host.reread, apply, metrics, log),
        cache=cache,
    )


def _workload_api(
    site: Site, settings: Settings, audit: Audit, log: FilteringBoundLogger
) -> WorkloadApi:
    return WorkloadApi(
        entitlements=site.entitlements,
        issuers=Issuers(authority=site.authority, x509=site.svids, jwt=site.jwt_svids),
        roster=site.roster,
        clock=site.clock,
        policy=_serving_policy(settings),
        note_issued=audit.issued,
        log=log,
    )


async def _open_authority(
    settings: Settings,
    keystore: Keystore,
    clock: Clock,
    log: FilteringBoundLogger,
    stack: AsyncExitStack,
) -> Authority:
    authority = Authority.open(_authority_policy(settings), keystore, clock, log)
    stack.callback(authority.close)
    await authority.catch_up()
    return authority


def _open_cache(
    settings: Settings,
    keystore: Keystore,
    authority: Authority,
    clock: Clock,
    log: FilteringBoundLogger,
) -> SvidCache | None:
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
    cache = SvidCache(keystore, secret, lambda: authority.bundle, clock, log)
    cache.load()
    return cache


# --- what changes while it runs ------------------------------------------------------------------


async def _reload(parts: _Parts, host: Host, hang_up: asyncio.Event) -> None:
    async def reload_all() -> None:
        with host.manager.reloading(parts.status):
            await parts.settings.reload()
            await parts.site.reloader.reload()

    watches = chain([parts.first_watch], iter(lambda: _watch(parts.in_force, host.log), None))
    await follow(hang_up, watches, parts.site.reloader.reload, reload_all)


async def _apply(
    site: Site, audit: Audit, gate: Gate, api: WorkloadApi, host: Host, settings: Settings
) -> None:
    # First, because it alone can fail.
    await site.authority.adopt(_authority_policy(settings))
    host.relog(settings)
    audit.enabled = settings.log.audit
    site.svids.default_ttl = settings.authority.x509_svid_ttl
    site.jwt_svids.default_ttl = settings.authority.jwt_svid_ttl
    api.policy = _serving_policy(settings)
    gate.door.identify_peer = _identify(settings)


def _watch(in_force: InForce, log: FilteringBoundLogger) -> FileWatch:
    return FileWatch(tuple(map(Path, in_force.settings.entries)), log)


def load_configured_entries(settings: Settings, clock: Clock) -> LoadedEntries:
    """The registration entries that the settings name.

    Raises:
        ConfigError: with every mistake in them.
    """
    return load_entries(
        settings.entries,
        settings.trust_domain,
        frozenset(settings.attestors),
        max_svid_ttl=settings.authority.max_svid_ttl,
        now=clock.now(),
    )


def parse_configured_entries(
    sources: Sequence[Source], settings: Settings, clock: Clock
) -> LoadedEntries:
    """Registration entries that are not where the settings say, by the same rules.

    Raises:
        ConfigError: with every mistake in them.
    """
    return parse_entries(
        sources,
        settings.trust_domain,
        frozenset(settings.attestors),
        max_svid_ttl=settings.authority.max_svid_ttl,
        now=clock.now(),
    )


# --- from settings to what parts take ------------------------------------------------------------


def _authority_policy(settings: Settings) -> AuthorityPolicy:
    return AuthorityPolicy(
        trust_domain=settings.trust_domain,
        key_type=settings.authority.key_type,
        ttl=settings.authority.x509_ca_ttl,
    )


def _serving_policy(settings: Settings) -> ServingPolicy:
    return ServingPolicy(
        review=Review(settings.reattest_interval, _spread),
        allow_unauthenticated_verifiers=settings.allow_unauthenticated_verifiers,
    )


def _identify(settings: Settings) -> Callable[[socket.socket], Caller]:
    return partial(identify, required=settings.require_proof)


def _public_socket(settings: Settings) -> SocketFile:
    return SocketFile(
        path=Path(settings.socket_path),
        mode=settings.socket_mode,
        owner=settings.socket_owner,
        group=settings.socket_group,
    )


def _admin_socket(path: PurePath, settings: Settings) -> SocketFile:
    group = settings.admin_socket_group
    mode = ADMIN_MODE if group is None else ADMIN_GROUP_MODE
    return SocketFile(path=Path(path), mode=mode, group=group)


def _metrics(attestors: Sequence[Attestor]) -> Metrics:
    names = tuple(attestor.name for attestor in attestors)
    return Metrics(
        Words(version=version("vouchd"), attestors=names, methods=METHODS, limits=REASONS)
    )


def _administrators(settings: Settings) -> Administrators:
    group = settings.admin_socket_group
    return Administrators(os.geteuid(), None if group is None else group_id(group))


def _spread() -> float:
    return random.uniform(-1, 1)  # noqa: S311 - spreads load, guards nothing


# --- sockets and the process ---------------------------------------------------------------------


def _gate(
    settings: Settings,
    inner: str,
    audit: Audit,
    log: FilteringBoundLogger,
    signals: Signals = UNHEARD,
) -> Gate:
    loop, limits = asyncio.get_running_loop(), settings.limits
    turnstile = Turnstile(loop, limits.requests_per_second, signals)
    door = Door(Admission(_limits(limits)), turnstile, audit.refused, _identify(settings), signals)
    path = str(Path(settings.data_dir) / inner)
    return Gate(loop, path, door, log, limits.first_request_timeout.total_seconds(), signals)


def _limits(settings: LimitSettings) -> Limits:
    return Limits(
        connections=settings.connections,
        connections_per_user=settings.connections_per_user,
        streams=settings.streams,
        streams_per_user=settings.streams_per_user,
        attestations=settings.attestations,
        attestations_per_user=settings.attestations_per_user,
    )


def _take_sockets(settings: Settings, stack: AsyncExitStack) -> dict[str, ActivatedListener]:
    admin = settings.admin_socket_path
    paths = {AGENT: Path(settings.socket_path), ADMIN: Path(admin) if admin else None}
    return take_sockets(os.environ, paths, stack.enter_context(ExitStack()))


async def _open(front: Front, stack: AsyncExitStack) -> None:
    stack.push_async_callback(front.close)
    await front.open()


async def _expose(
    settings: Settings, parts: _Parts, log: FilteringBoundLogger, stack: AsyncExitStack
) -> None:
    condition = Condition(parts.site, parts.gate, STREAMING)
    parts.site.metrics.watch(condition.levels)
    if (where := settings.telemetry.listen) is None:
        return
    from agent.exposition import Exposition, expose  # noqa: PLC0415 - most do without an HTTP server

    exposition = Exposition(parts.site.metrics.text, condition.obstacles, log)
    await stack.enter_async_context(expose(exposition, where, settings.telemetry.group))


def _handle_signals(stop: asyncio.Event, hang_up: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, hang_up.set)
