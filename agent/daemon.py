"""The composition root: builds every part, hands each its collaborators, starts and stops them.

Start: data directory, authority, entries, attestors, gRPC server, and the public socket last, so
that nobody can connect before there is somebody to answer.

Stop, in this order: no new connections; streams end with UNAVAILABLE; what is still open is cut;
the socket is removed. Clients that see their stream end while the socket still accepts would
reconnect in a tight loop.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import random
import resource
import signal
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from agent.api.context import Guard
from agent.api.health import Health
from agent.api.workload import SERVICE, Review, ServingPolicy, WorkloadApi
from agent.attestation import WorkloadAttestor
from agent.authority import Authority, AuthorityPolicy
from agent.clock import SystemClock
from agent.config import MAX_SOCKET_PATH
from agent.entitlement import Entitlements
from agent.errors import StartupError
from agent.files import load_entries
from agent.gate import Gate
from agent.keystore import Keystore
from agent.listener import Listener, SocketFile
from agent.peer import identify
from agent.svids import Svids
from attestors.api import AttestorContext, AttestorError
from attestors.builtin import available

new_event_loop: Callable[[], asyncio.AbstractEventLoop]
try:
    from uvloop import new_event_loop
except ImportError:  # there is no wheel for this machine
    from asyncio import new_event_loop

if TYPE_CHECKING:
    from collections.abc import Callable

    from structlog.typing import FilteringBoundLogger

    from agent.clock import Clock
    from agent.config import Settings
    from agent.entries import LoadedEntries
    from attestors.api import Attestor

# A request is a few audiences, or one token to validate.
MAX_REQUEST_BYTES = 64 * 1024
# A workload holds a handful of streams; more on one connection is a mistake or an attack.
MAX_STREAMS_PER_CONNECTION = 100
# As often as a careful client asks whether the agent is still there.
MIN_PING_MILLISECONDS = 10_000
# How long the last bytes may take to reach the clients at stop.
DRAIN_SECONDS = 1.0

_PR_SET_DUMPABLE = 4


def run(settings: Settings, log: FilteringBoundLogger, ready: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT. `ready` is called with the socket's address.

    Raises:
        StartupError: the daemon cannot start here.
        ConfigError: the registration entries are wrong.
    """
    _keep_memory_private()
    _raise_descriptor_limit()
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(serve(settings, log, ready))


async def serve(
    settings: Settings, log: FilteringBoundLogger, ready: Callable[[str], None]
) -> None:
    """See `run`."""
    stop = asyncio.Event()
    async with AsyncExitStack() as stack:
        _handle_signals(stop, log)
        parts = await _start(settings, log, stack)
        ready(f"unix://{settings.socket_path}")
        if settings.admin_socket_path is not None:
            log.warning("admin_socket_path is set, and not served by this version")
        for warning in parts.entries.warnings:
            log.warning("entry is doubtful", problem=str(warning))
        log.info(
            "serving",
            trust_domain=str(settings.trust_domain),
            entries=len(parts.entries.entries.entries),
            attestors=sorted(settings.attestors),
            authority="created" if parts.authority.created else "loaded",
        )
        async with asyncio.TaskGroup() as tasks:
            renewals = [
                tasks.create_task(parts.svids.run(), name="svid renewal"),
                tasks.create_task(parts.authority.run(), name="authority renewal"),
            ]
            await stop.wait()
            for task in renewals:
                task.cancel()
    log.info("stopped")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parts:
    """What is still needed once everything is built."""

    entries: LoadedEntries
    authority: Authority
    svids: Svids


async def _start(settings: Settings, log: FilteringBoundLogger, stack: AsyncExitStack) -> _Parts:
    keystore = Keystore(Path(settings.data_dir))
    stack.callback(keystore.close)
    clock = SystemClock()
    authority = Authority.open(_policy(settings), keystore, clock, log)
    await authority.replace_due()
    entries = load_configured_entries(settings, clock)
    attestor = WorkloadAttestor(_attestors(settings, log), log)
    stack.push_async_callback(attestor.close)
    svids = Svids(
        authority,
        clock,
        settings.authority.x509_svid_ttl,
        _spread,
        log,
    )
    authority.on_change(svids.wake_all)
    inner = Path(settings.data_dir) / "inner.sock"
    gate = Gate(
        asyncio.get_running_loop(),
        str(inner),
        log,
        partial(identify, required=settings.require_proof),
    )
    api = WorkloadApi(
        entitlements=Entitlements(attestor, entries.entries, gate.prove_sender, clock, log),
        svids=svids,
        authority=authority,
        clock=clock,
        policy=ServingPolicy(
            default_jwt_ttl=settings.authority.jwt_svid_ttl,
            review=Review(settings.reattest_interval, _spread),
            allow_unauthenticated_verifiers=settings.allow_unauthenticated_verifiers,
        ),
        log=log,
    )
    server = await _make_server(api, gate, inner, log)
    await _open_to_public(gate, server, settings, stack)
    return _Parts(entries=entries, authority=authority, svids=svids)


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


def known_attestors() -> dict[str, type[Attestor]]:
    """All attestors that the configuration may name.

    Raises:
        StartupError: an installed plug-in cannot be loaded.
    """
    try:
        return available()
    except Exception as error:
        raise StartupError(
            f"an installed attestor cannot be loaded ({type(error).__name__}: {error}); "
            "repair or uninstall its package"
        ) from error


def _policy(settings: Settings) -> AuthorityPolicy:
    return AuthorityPolicy(
        trust_domain=settings.trust_domain,
        key_type=settings.authority.key_type,
        ttl=settings.authority.x509_ca_ttl,
    )


def _attestors(settings: Settings, log: FilteringBoundLogger) -> list[Attestor]:
    known = known_attestors()
    made: list[Attestor] = []
    for name, options in settings.attestors.items():
        context = AttestorContext(log=log.bind(attestor=name).warning)
        try:
            made.append(known[name](options, context))
        except AttestorError as error:
            raise StartupError(f"attestor {name} cannot start: {error}") from error
    return made


def _spread() -> float:
    return random.uniform(-1, 1)  # noqa: S311 - spreads load, guards nothing


async def _open_to_public(
    gate: Gate, server: grpc.aio.Server, settings: Settings, stack: AsyncExitStack
) -> None:
    listener = Listener(
        SocketFile(
            path=Path(settings.socket_path),
            mode=settings.socket_mode,
            owner=settings.socket_owner,
            group=settings.socket_group,
        )
    )

    async def stop() -> None:
        gate.stop_accepting()
        listener.close()
        await server.stop(grace=None)
        await gate.drain(DRAIN_SECONDS)
        gate.close()

    stack.push_async_callback(stop)
    await server.start()
    gate.start(listener.socket)


async def _make_server(
    api: WorkloadApi, gate: Gate, inner: Path, log: FilteringBoundLogger
) -> grpc.aio.Server:
    if len(os.fsencode(inner)) > MAX_SOCKET_PATH:
        raise StartupError(f"data_dir {inner.parent} is too long to hold a socket; shorten it")
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
            ("grpc.max_concurrent_streams", MAX_STREAMS_PER_CONNECTION),
            # Idle streams are the rule here; gRPC would cut clients that ping within five minutes.
            ("grpc.http2.min_ping_interval_without_data_ms", MIN_PING_MILLISECONDS),
            ("grpc.keepalive_permit_without_calls", 1),
        ]
    )
    server.add_generic_rpc_handlers((api.handlers(Guard(gate, log)),))
    checks = Health(gate)
    await checks.set(SERVICE, health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    reflection.enable_server_reflection(
        (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server
    )
    try:
        server.add_insecure_port(f"unix:{inner}")
    except RuntimeError as error:
        raise StartupError(
            f"cannot make the socket {inner}: is there room on its disk, and may it be written?"
        ) from error
    return server


def _handle_signals(stop: asyncio.Event, log: FilteringBoundLogger) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(
        signal.SIGHUP, log.warning, "nothing was reloaded: restart to take up changes"
    )


def _keep_memory_private() -> None:
    """Keys are here: no core dumps, and no ptrace by others of the same user (prctl(2))."""
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def _raise_descriptor_limit() -> None:
    """Each connection takes five descriptors; the soft limit is meant for programs with select."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
