"""The daemon: builds its parts, opens its sockets, and stops in order.

Start: data directory, authority, entries, attestors (agent.service.wiring), gRPC servers, and the
public socket last, so that no workload can connect before the agent can answer. Stop: the reverse
order (agent.service.endpoint).
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
from contextlib import AsyncExitStack, ExitStack
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from agent.admin.operations import Operations
from agent.admin.readiness import Readiness
from agent.api.admin import AdminApi
from agent.api.guard import Guard
from agent.api.servers import MAX_ADMIN_CALL_BYTES, make_admin_server, make_workload_server
from agent.api.workload import STREAMING
from agent.client.endpoint import endpoint_uri
from agent.gate.listener import Listener, settings_without_effect
from agent.gate.socket_activation import take_sockets
from agent.service.endpoint import Endpoint
from agent.service.policies import admin_socket, administrators, public_socket
from agent.service.process import prepare_process
from agent.service.reload import follow
from agent.service.wiring import INNER, build, make_gate, watch_entries

new_event_loop: Callable[[], asyncio.AbstractEventLoop]
try:
    from uvloop import new_event_loop
except ImportError:  # there is no wheel for this machine
    from asyncio import new_event_loop

if TYPE_CHECKING:
    from collections.abc import Callable

    from structlog.typing import FilteringBoundLogger

    from agent.config.settings import Settings
    from agent.gate.socket_activation import ActivatedListener
    from agent.kernel.caller import Caller
    from agent.service.wiring import Host, Parts
    from agent.telemetry.audit import RefusedCall

# The names that socket units give what they pass (FileDescriptorName=).
AGENT, ADMIN = "agent", "admin"
ADMIN_INNER = "admin-inner.sock"


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
        _look_less_for_garbage()
        host.ready(endpoint_uri(settings.socket_path))
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
                tasks.create_task(parts.site.streams.run(), name="ends of entries"),
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


async def _start(settings: Settings, host: Host, stack: AsyncExitStack) -> Parts:
    passed = _take_sockets(settings, stack)
    parts = await build(settings, host, stack)
    data_dir, site = Path(settings.data_dir), parts.site
    if settings.admin_socket_path is not None:
        gate = make_gate(settings, ADMIN_INNER, MAX_ADMIN_CALL_BYTES, parts.audit, host.log)
        admin = AdminApi(Operations(site), administrators(settings), gate, host.log)
        server = make_admin_server(admin, gate, data_dir / ADMIN_INNER)
        file = admin_socket(settings.admin_socket_path, settings)
        listener = passed.get(ADMIN) or Listener(file)
        await _open(Endpoint(gate=gate, server=server, listener=listener), stack)
    await _expose(settings, parts, host.log, stack)
    quotas, note = parts.gate.admission.quotas, partial(_note_refused_call, parts)
    guard = Guard(parts.gate, quotas, note, host.log, site.metrics)
    server = await make_workload_server(parts.api, guard, parts.gate, data_dir / INNER)
    listener = passed.get(AGENT) or Listener(public_socket(settings))
    if AGENT in passed:
        _warn_of_disregarded(settings, host.log)
    endpoint = Endpoint(
        gate=parts.gate,
        server=server,
        listener=listener,
        end_streams=site.streams.close,
        locks_out=True,
    )
    await _open(endpoint, stack)
    return parts


def _note_refused_call(parts: Parts, caller: Caller | None, refusal: RefusedCall) -> None:
    parts.audit.refused(caller, refusal)
    if caller is not None:
        parts.site.refusals.note(caller.credentials, refusal.method, refusal.code, refusal.reason)


async def _reload(parts: Parts, host: Host, hang_up: asyncio.Event) -> None:
    async def reload_all() -> None:
        with host.manager.reloading(parts.status):
            await parts.settings.reload()
            await parts.site.reloader.reload()

    later = iter(lambda: watch_entries(parts.in_force, host.log), None)
    watches = chain([parts.first_watch], later)
    await follow(hang_up, watches, parts.site.reloader.reload, reload_all, host.log)


def _take_sockets(settings: Settings, stack: AsyncExitStack) -> dict[str, ActivatedListener]:
    admin = settings.admin_socket_path
    paths = {AGENT: Path(settings.socket_path), ADMIN: Path(admin) if admin else None}
    return take_sockets(os.environ, paths, stack.enter_context(ExitStack()))


def _warn_of_disregarded(settings: Settings, log: FilteringBoundLogger) -> None:
    """Whoever wrote down who may connect believes that it holds."""
    for name in settings.model_fields_set.intersection(
        settings_without_effect(public_socket(settings))
    ):
        log.warning(
            "setting does not hold for a socket that the service manager made: "
            "set SocketMode=, SocketUser= or SocketGroup= in its unit",
            setting=name,
        )


async def _open(endpoint: Endpoint, stack: AsyncExitStack) -> None:
    stack.push_async_callback(endpoint.close)
    await endpoint.open()


async def _expose(
    settings: Settings, parts: Parts, log: FilteringBoundLogger, stack: AsyncExitStack
) -> None:
    readiness = Readiness(parts.site, parts.gate, STREAMING)
    parts.site.metrics.watch(readiness.levels)
    if (where := settings.telemetry.listen) is None:
        return
    from agent.web.probes import Exposition, expose  # noqa: PLC0415 - most do without an HTTP server

    exposition = Exposition(parts.site.metrics.text, readiness.obstacles, log)
    await stack.enter_async_context(expose(exposition, where, settings.telemetry.group))


def _look_less_for_garbage() -> None:
    """Have Python look for garbage less often: all it looks at is kept waiting (gc).

    What is there by now stays. Few cycles are made later, and a look at all that thousands of open
    streams hold takes a tenth of a second.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(5_000, 10, 20)


def _handle_signals(stop: asyncio.Event, hang_up: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, hang_up.set)
