"""The daemon: makes its parts, opens its sockets, runs until a signal, and stops in order.

Start: data directory, authority, entries, attestors (agent.service.wiring), then the admin socket,
and the public socket last: no workload connects before the agent can answer. Stop: the reverse
order (agent.service.endpoint).
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from agent.api.admin import AdminApi
from agent.api.guard import Guard
from agent.api.health import Health
from agent.api.servers import make_admin_services, make_public_services
from agent.client.endpoint import endpoint_uri
from agent.gate.listener import Listener, settings_without_effect
from agent.gate.socket_activation import take_sockets
from agent.service.background import run_until
from agent.service.endpoint import Endpoint
from agent.service.policies import admin_limits, admin_socket, administrators, public_socket
from agent.service.process import prepare_process
from agent.service.reload import ReloadLoop, SettingsReloader
from agent.service.wiring import build, make_gate, watch_entries

new_event_loop: Callable[[], asyncio.AbstractEventLoop]
try:
    from uvloop import new_event_loop
except ImportError:  # there is no wheel for this machine
    from asyncio import new_event_loop

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import PurePath

    from structlog.typing import FilteringBoundLogger

    from agent.admin.readiness import Readiness
    from agent.config.settings import Settings
    from agent.gate.socket_activation import ActivatedListener
    from agent.kernel.caller import Caller
    from agent.service.wiring import Host, Parts
    from agent.telemetry.audit import RefusedCall

# The names that socket units give the sockets (FileDescriptorName=).
AGENT, ADMIN = "agent", "admin"


@dataclass(frozen=True, slots=True)
class Running:
    """The daemon once its sockets are open."""

    parts: Parts
    health: Health
    settings_reloader: SettingsReloader

    def status(self) -> str:
        """Return one line for `systemctl status`: entries, callers, a failed reload."""
        reload, callers = self.parts.reloader.status, self.parts.gate.processes()
        line = f"serving {reload.entries} entries to {callers} callers"
        if self.settings_reloader.failure:
            line += f"; settings not reloaded: {self.settings_reloader.failure}"
        if reload.problems:
            line += f"; entries not reloaded, the last good ones serve: {reload.problems[0]}"
        return line


def run(settings: Settings, host: Host) -> None:
    """Serve until SIGTERM or SIGINT. `host.ready` is called with the socket's address.

    Raises:
        StartupError: the daemon cannot start here.
        ConfigError: the registration entries are wrong.
        DefectError: a background task broke.
    """
    prepare_process(settings.limits.connections, host.log)
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(serve(settings, host))


async def serve(settings: Settings, host: Host) -> None:
    """See `run`."""
    stop, hang_up = asyncio.Event(), asyncio.Event()
    async with AsyncExitStack() as stack:
        _handle_signals(stop, hang_up)
        running = await _start(settings, host, stack)
        _collect_garbage_less_often()
        host.ready(endpoint_uri(settings.socket_path))
        host.log.info(
            "serving",
            trust_domain=str(settings.trust_domain),
            entries=running.parts.reloader.status.entries,
            attestors=sorted(settings.attestors),
            authority_state="created" if running.parts.issuing.authority.created else "loaded",
        )
        host.manager.tell(READY=1, STATUS=running.status())
        try:
            await run_until(stop, _background_tasks(running, host, hang_up), host.log)
        finally:
            running.health.stop()
            host.manager.tell(STOPPING=1, STATUS="stopping")
    host.log.info("stopped")


def _background_tasks(
    running: Running, host: Host, hang_up: asyncio.Event
) -> dict[str, Coroutine[None, None, object]]:
    parts, issuing = running.parts, running.parts.issuing
    tasks: dict[str, Coroutine[None, None, object]] = {
        "svid renewal": issuing.x509_svids.run(),
        "authority rotation": issuing.authority.run(),
        "expiry of entries": parts.streams.run(),
        "reload": _reload_loop(running, host).run(hang_up, parts.first_watch),
        "health": running.health.run(parts.clock),
        "status line": host.manager.follow(running.status),
        "watchdog": host.manager.feed_watchdog(),
    }
    if issuing.cache is not None:
        tasks["svid cache"] = issuing.cache.run()
    return tasks


def _reload_loop(running: Running, host: Host) -> ReloadLoop:
    parts = running.parts
    return ReloadLoop(
        make_watch=partial(watch_entries, parts.current, host.log),
        reload_settings=running.settings_reloader.reload,
        reload_entries=parts.reloader.reload,
        log=host.log,
        reloading=partial(host.manager.reloading, running.status),
    )


async def _start(settings: Settings, host: Host, stack: AsyncExitStack) -> Running:
    passed = _take_sockets(settings, stack)
    parts = await build(settings, host, stack)
    if settings.admin_socket_path is not None:
        admin = _admin_endpoint(settings, settings.admin_socket_path, parts, host.log, passed)
        _open(admin, stack)
    readiness = parts.readiness()
    parts.metrics.watch(parts.gauges(readiness).levels)
    await _expose_metrics(settings, parts, readiness, host.log, stack)
    health = Health([each.service for each in parts.public_apis], readiness.not_ready_because)
    _open(_public_endpoint(settings, parts, health, host.log, passed), stack)

    async def apply(changed: Settings) -> None:
        await parts.apply(changed)
        host.relog(changed)

    reloader = SettingsReloader(parts.current, host.reread, apply, parts.metrics, host.log)
    return Running(parts, health, reloader)


def _admin_endpoint(
    settings: Settings,
    path: PurePath,
    parts: Parts,
    log: FilteringBoundLogger,
    passed: dict[str, ActivatedListener],
) -> Endpoint:
    gate = make_gate(settings, admin_limits(settings.limits), parts.audit, log)
    api = AdminApi(parts.operations(), administrators(settings), log)
    listener = passed.get(ADMIN) or Listener(admin_socket(path, settings))
    return Endpoint(gate=gate, services=make_admin_services(api), listener=listener)


def _public_endpoint(
    settings: Settings,
    parts: Parts,
    health: Health,
    log: FilteringBoundLogger,
    passed: dict[str, ActivatedListener],
) -> Endpoint:
    gate, quotas = parts.gate, parts.gate.admission.quotas
    guard = Guard(quotas, partial(_note_refused_call, parts), log, parts.metrics)
    listener = passed.get(AGENT) or Listener(public_socket(settings))
    if AGENT in passed:
        _warn_of_settings_without_effect(settings, log)
    return Endpoint(
        gate=gate,
        services=make_public_services(parts.public_apis, guard, health),
        listener=listener,
        end_streams=parts.streams.close,
        locks_out=settings.limits.lockout,
    )


def _note_refused_call(parts: Parts, caller: Caller | None, refusal: RefusedCall) -> None:
    parts.audit.refused(caller, refusal)
    if caller is not None:
        parts.refusals.note(caller.credentials, refusal)


def _take_sockets(settings: Settings, stack: AsyncExitStack) -> dict[str, ActivatedListener]:
    admin = settings.admin_socket_path
    paths = {AGENT: Path(settings.socket_path), ADMIN: Path(admin) if admin else None}
    return take_sockets(os.environ, paths, stack.enter_context(ExitStack()))


def _warn_of_settings_without_effect(settings: Settings, log: FilteringBoundLogger) -> None:
    """Warn of a mode, owner or group in the settings: they limit access to the socket in vain."""
    for name in settings.model_fields_set.intersection(
        settings_without_effect(public_socket(settings))
    ):
        log.warning(
            "setting has no effect",
            setting=name,
            reason="the service manager made the socket",
            advice="set SocketMode=, SocketUser= or SocketGroup= in its unit",
        )


def _open(endpoint: Endpoint, stack: AsyncExitStack) -> None:
    stack.push_async_callback(endpoint.close)
    endpoint.open()


async def _expose_metrics(
    settings: Settings,
    parts: Parts,
    readiness: Readiness,
    log: FilteringBoundLogger,
    stack: AsyncExitStack,
) -> None:
    if (where := settings.telemetry.listen) is None:
        return
    from agent.web.probes import Probes, expose  # noqa: PLC0415 - most agents serve no HTTP

    probes = Probes(parts.metrics.text, readiness.not_ready_because, log)
    await stack.enter_async_context(expose(probes, where, settings.telemetry.group))


def _collect_garbage_less_often() -> None:
    """Freeze what is there, and raise the thresholds of the garbage collector.

    The daemon makes few cycles, and a collection over thousands of open streams blocks the event
    loop for a tenth of a second. A collection before would free 0.6 MiB and cost a twentieth of
    the start.
    """
    gc.freeze()
    gc.set_threshold(5_000, 10, 20)


def _handle_signals(stop: asyncio.Event, hang_up: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, hang_up.set)
