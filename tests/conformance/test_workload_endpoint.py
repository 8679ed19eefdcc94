"""Workload Endpoint: how it is reached, what it demands, and how it refuses."""
# The ids keep the form they have in requirements.md.
# ruff: noqa: N802

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.conformance import wire
from tests.conformance.reflection import Reflection
from tests.conformance.wire import (
    INVALID_ARGUMENT,
    OK,
    PERMISSION_DENIED,
    UNAVAILABLE,
    UNIMPLEMENTED,
    CallError,
    Endpoint,
    Metadata,
)
from tests.conftest import AgentFactory

WRONG_HEADERS: dict[str, Metadata] = {
    "none": (),
    "empty": (("workload.spiffe.io", ""),),
    "capital": (("workload.spiffe.io", "True"),),
    "upper case": (("workload.spiffe.io", "TRUE"),),
    "one": (("workload.spiffe.io", "1"),),
    "false": (("workload.spiffe.io", "false"),),
    "another name": (("broker.spiffe.io", "true"),),
}


def test_WE_03_it_speaks_grpc(given: Endpoint) -> None:
    with given.stream(wire.X509_SVID) as call:
        call.next(wire.X509_SVID.response)
        assert call.headers[":status"] == "200"
        assert call.headers["content-type"].startswith("application/grpc")


@pytest.mark.needs_control
@pytest.mark.skipif(os.geteuid() != 0, reason="only root sees the descriptors of the agent")
def test_WE_05_it_does_not_listen_on_tcp(agent_factory: AgentFactory) -> None:
    process = Path(f"/proc/{agent_factory().pid}")
    sockets = {str(link.readlink()) for link in (process / "fd").iterdir()}
    assert any(target.startswith("socket:") for target in sockets)
    for table in ("tcp", "tcp6"):
        rows = (process / "net" / table).read_text().splitlines()[1:]
        assert not sockets & {f"socket:[{row.split()[9]}]" for row in rows}


@pytest.mark.parametrize("metadata", WRONG_HEADERS.values(), ids=WRONG_HEADERS)
def test_WE_07_nothing_is_served_without_the_security_header(
    given: Endpoint, metadata: Metadata
) -> None:
    for method in wire.X509_AND_JWT:
        assert given.status(method, metadata=metadata) != OK, method.name


def test_WE_08_a_missing_security_header_is_invalid_argument(given: Endpoint) -> None:
    assert given.status(wire.X509_SVID, metadata=()) == INVALID_ARGUMENT
    assert given.status(wire.X509_SVID) == OK


def test_WE_09_it_serves_in_clear_text(given: Endpoint) -> None:
    # The client of this suite knows no TLS.
    assert given.status(wire.X509_BUNDLES) == OK


def test_WE_14_no_credentials_are_asked_for(given: Endpoint) -> None:
    # Nothing but the security header, which is the same for everybody.
    assert given.status(wire.X509_SVID, metadata=wire.SECURITY_HEADER) == OK
    assert given.status(wire.JWT_SVID, metadata=wire.SECURITY_HEADER) == OK


@pytest.mark.needs_control
def test_WE_18_when_it_cannot_serve_it_is_unavailable(unable: Endpoint) -> None:
    for method in (wire.X509_SVID, wire.JWT_SVID):
        assert unable.status(method) == UNAVAILABLE, method.name


@pytest.mark.needs_control
def test_WE_19_a_caller_without_identity_gets_permission_denied(stranger: Endpoint) -> None:
    assert stranger.status(wire.X509_SVID) == PERMISSION_DENIED


@pytest.mark.parametrize("path", ["/SpiffeWorkloadAPI/FetchNothing", "/NoSuchAPI/FetchX509SVID"])
def test_WE_20_an_unknown_method_is_unimplemented(given: Endpoint, path: str) -> None:
    with given.open(path, b"") as call, pytest.raises(CallError) as refusal:
        call.next(wire.X509_SVID.response)
    assert refusal.value.code == UNIMPLEMENTED


def test_WE_21_the_standard_service_has_the_standard_methods_only(reflection: Reflection) -> None:
    methods = {method.name for method in wire.X509_AND_JWT + wire.WIT}
    assert set(reflection.methods(wire.SERVICE)) <= methods


def test_WE_22_the_workload_api_is_exposed(given: Endpoint) -> None:
    assert given.status(wire.X509_SVID) != UNIMPLEMENTED


def test_WE_23_reflection_lists_the_workload_api(given: Endpoint) -> None:
    assert wire.SERVICE in Reflection(given).services()
