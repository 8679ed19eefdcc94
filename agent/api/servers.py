"""The two gRPC servers, each behind a gate and on a private socket of its own.

The public server takes a list of APIs. Each names its service and makes its handlers with the
guard; health and reflection list the names. A further API (SDS, for instance) is one more module
here and, in agent.service.wiring, one more element of `public_apis`; `make_metrics` there takes the
names of its methods.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Protocol

import grpc
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2_grpc

from agent.api import admin, health, reflection
from agent.api.reflection import Reflection
from agent.client.endpoint import grpc_target
from agent.config.files import MAX_FILE_BYTES
from agent.errors import StartupError, with_remedy
from agent.kernel.credentials import MAX_SOCKET_PATH

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from agent.api.admin import AdminApi
    from agent.api.guard import CallerTable, Guard
    from agent.api.health import Health

# A request is a few audiences or one token: twice the longest token that is validated. Half a
# request stays in memory until the rest arrives.
MAX_REQUEST_BYTES = 32 * 1024
# The gate cuts a connection at this many bytes of one call. Each gRPC message has a prefix of five
# bytes.
MAX_CALL_BYTES = MAX_REQUEST_BYTES + 5
MAX_ADMIN_CALL_BYTES = MAX_FILE_BYTES + 5
# The gate passes no header block above agent.transport.http2.MAX_HEADER_BLOCK_BYTES; decoded, such
# a block is somewhat larger. By default gRPC refuses some blocks from 8 KiB on.
MAX_UNPACKED_HEADER_BYTES = 32 * 1024
# A workload holds a handful of streams; more on one connection is a mistake or an attack.
MAX_STREAMS_PER_CONNECTION = 100
# The shortest keepalive interval of common clients.
MIN_PING_MILLISECONDS = 10_000


class Api(Protocol):
    """A gRPC service on the public socket."""

    @property
    def service(self) -> str:
        """The full name of the service."""
        ...

    def handlers(self, guard: Guard) -> grpc.GenericRpcHandler:
        """Return the handlers of its methods, each behind the guard."""
        ...


def make_public_server(
    apis: Sequence[Api], guard: Guard, checks: Health, callers: CallerTable, inner: Path
) -> grpc.aio.Server:
    """Make the server of the public socket: the APIs, health and reflection.

    Raises:
        StartupError: the private socket cannot be made.
    """
    server = _make(MAX_REQUEST_BYTES)
    server.add_generic_rpc_handlers(tuple(api.handlers(guard) for api in apis))
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    _add_reflection(server, callers, *(api.service for api in apis), health.SERVICE)
    server.add_generic_rpc_handlers((guard.unknown_methods(),))
    _bind(server, inner)
    return server


def make_admin_server(api: AdminApi, callers: CallerTable, inner: Path) -> grpc.aio.Server:
    """Make the server of the admin socket, of which the requests may hold whole entry files.

    Raises:
        StartupError: the private socket cannot be made.
    """
    server = _make(MAX_FILE_BYTES)
    server.add_generic_rpc_handlers((api.handlers(),))
    _add_reflection(server, callers, admin.SERVICE)
    _bind(server, inner)
    return server


def _make(max_request_bytes: int) -> grpc.aio.Server:
    return grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", max_request_bytes),
            ("grpc.max_concurrent_streams", MAX_STREAMS_PER_CONNECTION),
            ("grpc.max_metadata_size", MAX_UNPACKED_HEADER_BYTES),
            ("grpc.absolute_max_metadata_size", MAX_UNPACKED_HEADER_BYTES),
            # Idle streams are the rule here; by default gRPC cuts clients that ping within five
            # minutes.
            ("grpc.http2.min_ping_interval_without_data_ms", MIN_PING_MILLISECONDS),
            ("grpc.keepalive_permit_without_calls", 1),
        ]
    )


def _add_reflection(server: grpc.aio.Server, callers: CallerTable, *services: str) -> None:
    servicer = Reflection(callers, (*services, reflection.SERVICE))
    add = reflection_pb2_grpc.add_ServerReflectionServicer_to_server
    add(servicer, server)  # type: ignore[no-untyped-call]


def _bind(server: grpc.aio.Server, inner: Path) -> None:
    if len(os.fsencode(inner)) > MAX_SOCKET_PATH:
        raise StartupError(f"data_dir {inner.parent} is too long to hold a socket; shorten it")
    try:
        # gRPC writes the reason of a failed bind to a log of its own only: bind once before.
        inner.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX) as probe:
            probe.bind(str(inner))
        server.add_insecure_port(grpc_target(inner))
    except OSError as error:
        raise StartupError(f"cannot make the socket {inner}: {with_remedy(error)}") from error
    except RuntimeError as error:
        raise StartupError(f"cannot make the socket {inner}") from error
