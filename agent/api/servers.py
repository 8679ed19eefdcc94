"""The two gRPC servers, each behind a gate, on a private socket of its own."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from agent.api import admin
from agent.api.health import Health, Reflection
from agent.api.workload import SERVICE
from agent.client.endpoint import grpc_target
from agent.config.files import MAX_FILE_BYTES
from agent.errors import StartupError, with_remedy
from agent.kernel.credentials import MAX_SOCKET_PATH

if TYPE_CHECKING:
    from pathlib import Path

    from agent.api.admin import AdminApi
    from agent.api.guard import Guard
    from agent.api.workload import WorkloadApi
    from agent.gate.gate import Gate

# A request is a few audiences, or one token to validate: twice the longest that is looked at. Half
# a request stays in memory until the rest of it comes.
MAX_REQUEST_BYTES = 32 * 1024
# What is more never gets here, where nobody would count it: the gate cuts the connection. Each
# message has five bytes before it.
MAX_CALL_BYTES = MAX_REQUEST_BYTES + 5
MAX_ADMIN_CALL_BYTES = MAX_FILE_BYTES + 5
# The gate passes no header block above agent.transport.http2.MAX_HEADER_BLOCK_BYTES; unpacked, such
# a block is somewhat larger. gRPC refuses some from 8 KiB on unless it is told.
MAX_UNPACKED_HEADER_BYTES = 32 * 1024
# A workload holds a handful of streams; more on one connection is a mistake or an attack.
MAX_STREAMS_PER_CONNECTION = 100
# As often as a careful client asks whether the agent is still there.
MIN_PING_MILLISECONDS = 10_000


async def make_workload_server(
    api: WorkloadApi, guard: Guard, gate: Gate, inner: Path
) -> grpc.aio.Server:
    """The Workload API, health and reflection.

    Raises:
        StartupError: the socket cannot be made.
    """
    server = _make(MAX_REQUEST_BYTES)
    server.add_generic_rpc_handlers((api.handlers(guard),))
    checks = Health(gate)
    await checks.set(SERVICE, health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    _reflect(server, gate, SERVICE, health.SERVICE_NAME)
    server.add_generic_rpc_handlers((guard.unknown_methods(),))
    _bind(server, inner)
    return server


def make_admin_server(api: AdminApi, gate: Gate, inner: Path) -> grpc.aio.Server:
    """The administration, whose callers may send whole entry files, and reflection.

    Raises:
        StartupError: the socket cannot be made.
    """
    server = _make(MAX_FILE_BYTES)
    server.add_generic_rpc_handlers((api.handlers(),))
    _reflect(server, gate, admin.SERVICE)
    _bind(server, inner)
    return server


def _make(max_request_bytes: int) -> grpc.aio.Server:
    return grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", max_request_bytes),
            ("grpc.max_concurrent_streams", MAX_STREAMS_PER_CONNECTION),
            ("grpc.max_metadata_size", MAX_UNPACKED_HEADER_BYTES),
            ("grpc.absolute_max_metadata_size", MAX_UNPACKED_HEADER_BYTES),
            # Idle streams are the rule here; gRPC would cut clients that ping within five minutes.
            ("grpc.http2.min_ping_interval_without_data_ms", MIN_PING_MILLISECONDS),
            ("grpc.keepalive_permit_without_calls", 1),
        ]
    )


def _reflect(server: grpc.aio.Server, gate: Gate, *services: str) -> None:
    servicer = Reflection(gate, (*services, reflection.SERVICE_NAME))
    add = reflection_pb2_grpc.add_ServerReflectionServicer_to_server
    add(servicer, server)  # type: ignore[no-untyped-call]


def _bind(server: grpc.aio.Server, inner: Path) -> None:
    if len(os.fsencode(inner)) > MAX_SOCKET_PATH:
        raise StartupError(f"data_dir {inner.parent} is too long to hold a socket; shorten it")
    try:
        # gRPC says why it cannot only in a log of its own; so it is found out before.
        inner.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX) as probe:
            probe.bind(str(inner))
        server.add_insecure_port(grpc_target(inner))
    except OSError as error:
        raise StartupError(f"cannot make the socket {inner}: {with_remedy(error)}") from error
    except RuntimeError as error:
        raise StartupError(f"cannot make the socket {inner}") from error
