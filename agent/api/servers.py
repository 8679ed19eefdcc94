"""The services of the two sockets.

The public socket has a list of APIs. Each names its service and makes its methods with the guard;
health and reflection list the names. A further API (SDS, for instance) is one more module here and,
in agent.service.wiring, one more element of `public_apis`; `make_metrics` there takes the names of
its methods.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from agent.api import admin, health, reflection
from agent.api.reflection import Reflection
from agent.transport.service import Services

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from agent.api.admin import AdminApi
    from agent.api.guard import Guard
    from agent.api.health import Health
    from agent.transport.service import Method


class Api(Protocol):
    """A gRPC service on the public socket."""

    @property
    def service(self) -> str:
        """The full name of the service."""
        ...

    def methods(self, guard: Guard) -> Mapping[bytes, Method]:
        """Return its methods by path, each behind the guard."""
        ...


def make_public_services(apis: Sequence[Api], guard: Guard, checks: Health) -> Services:
    """Return the services of the public socket: the APIs, health and reflection."""
    names = (*(api.service for api in apis), health.SERVICE, *reflection.SERVICES)
    methods = {**checks.methods(), **Reflection(names).methods()}
    for api in apis:
        methods |= api.methods(guard)
    return Services(methods=methods, unknown=guard.unknown_method(), observer=guard)


def make_admin_services(api: AdminApi) -> Services:
    """Return the services of the admin socket, of which the requests may hold whole entry files."""
    described = Reflection((admin.SERVICE, *reflection.SERVICES))
    return Services(
        methods={**api.methods(), **described.methods()},
        unknown=api.unknown_method(),
        observer=api,
    )
