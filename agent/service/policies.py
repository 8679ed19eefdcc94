"""From settings to the arguments of the parts.

The parts get values, not the settings. `agent.entries.load` is the exception: each load takes the
settings in force.
"""

from __future__ import annotations

import os
import random
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from agent.api.admin import Administrators
from agent.api.workload import Review, ServingPolicy
from agent.authority.embedded import AuthorityPolicy
from agent.config.files import MAX_FILE_BYTES
from agent.gate.listener import SocketFile, group_id
from agent.kernel.caller import identify
from agent.limits.quotas import Limits
from agent.transport.connection import ConnectionTimes
from agent.transport.grpc_protocol import PREFIX_BYTES

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from pathlib import PurePath

    from agent.config.settings import LimitSettings, Settings
    from agent.kernel.caller import Caller

ADMIN_MODE = 0o600
ADMIN_GROUP_MODE = 0o660
# Of one administrator in one session half: two of the largest requests.
ADMIN_BUFFER_BYTES = 4 * (MAX_FILE_BYTES + PREFIX_BYTES)


def authority_policy(settings: Settings) -> AuthorityPolicy:
    """Return the trust domain, key type and lifetime of the authorities."""
    return AuthorityPolicy(
        trust_domain=settings.trust_domain,
        key_type=settings.authority.key_type,
        ttl=settings.authority.x509_ca_ttl,
    )


def serving_policy(settings: Settings) -> ServingPolicy:
    """Return the policy of the Workload API."""
    return ServingPolicy(
        review=Review(settings.reattest_interval, spread),
        allow_unauthenticated_verifiers=settings.allow_unauthenticated_verifiers,
        response_bytes=settings.limits.response_bytes,
    )


def identification(settings: Settings) -> Callable[[socket.socket], Caller]:
    """Return the function that identifies the peer of an accepted socket."""
    return partial(identify, required=settings.require_proof)


def limits(settings: LimitSettings) -> Limits:
    """Return the limits of the quotas."""
    return Limits(
        connections=settings.connections,
        connections_per_user=settings.connections_per_user,
        streams=settings.streams,
        streams_per_user=settings.streams_per_user,
        attestations=settings.attestations,
        attestations_per_user=settings.attestations_per_user,
        buffer_bytes=settings.buffer_bytes,
        buffer_bytes_per_user=settings.buffer_bytes_per_user,
    )


def admin_limits(settings: LimitSettings) -> Limits:
    """Return the limits of the admin socket, whose requests may hold whole entry files."""
    return replace(
        limits(settings), buffer_bytes=ADMIN_BUFFER_BYTES, buffer_bytes_per_user=ADMIN_BUFFER_BYTES
    )


def connection_times(settings: LimitSettings) -> ConnectionTimes:
    """Return how long the client of a connection may take."""
    return ConnectionTimes(first_request=settings.first_request_timeout.total_seconds())


def public_socket(settings: Settings) -> SocketFile:
    """Return the path, mode and owner of the Workload API socket."""
    return SocketFile(
        path=Path(settings.socket_path),
        mode=settings.socket_mode,
        owner=settings.socket_owner,
        group=settings.socket_group,
    )


def admin_socket(path: PurePath, settings: Settings) -> SocketFile:
    """Return the path, mode and group of the admin socket."""
    group = settings.admin_socket_group
    mode = ADMIN_MODE if group is None else ADMIN_GROUP_MODE
    return SocketFile(path=Path(path), mode=mode, group=group)


def administrators(settings: Settings) -> Administrators:
    """Return the users of the admin API."""
    group = settings.admin_socket_group
    return Administrators(os.geteuid(), None if group is None else group_id(group))


def spread() -> float:
    """Draw from [-1, 1): the jitter of renewals and reviews."""
    return random.uniform(-1, 1)  # noqa: S311 - spreads load, guards nothing
