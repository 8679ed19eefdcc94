"""Workload Endpoint: transport, security header, refusals."""

from __future__ import annotations

from pathlib import Path

import pytest

from . import wire
from .reflection import Reflection
from .situations import Situation
from .wire import (
    INVALID_ARGUMENT,
    OK,
    PERMISSION_DENIED,
    UNAVAILABLE,
    UNIMPLEMENTED,
    CallError,
    Endpoint,
    Metadata,
)

WRONG_HEADERS: dict[str, Metadata] = {
    "none": (),
    "empty": (("workload.spiffe.io", ""),),
    "capital": (("workload.spiffe.io", "True"),),
    "upper case": (("workload.spiffe.io", "TRUE"),),
    "one": (("workload.spiffe.io", "1"),),
    "false": (("workload.spiffe.io", "false"),),
    "another name": (("broker.spiffe.io", "true"),),
}


def test_WE_03_the_server_speaks_grpc(server: Endpoint) -> None:
    with server.stream(wire.X509_SVID) as call:
        call.next(wire.X509_SVID.response)
        assert call.headers[":status"] == "200"
        assert call.headers["content-type"].startswith("application/grpc")


def test_WE_05_a_server_on_a_unix_socket_has_no_tcp_socket(several: Situation) -> None:
    if several.pid is None:
        pytest.skip("the control command names no pid")
    process = Path(f"/proc/{several.pid}")
    try:
        sockets = {str(link.readlink()) for link in (process / "fd").iterdir()}
    except PermissionError:
        pytest.skip("this process may not see the server's descriptors")
    assert any(target.startswith("socket:") for target in sockets)
    for table in ("tcp", "tcp6"):
        rows = (process / "net" / table).read_text().splitlines()[1:]
        assert not sockets & {f"socket:[{row.split()[9]}]" for row in rows}


@pytest.mark.parametrize("metadata", WRONG_HEADERS.values(), ids=WRONG_HEADERS)
def test_WE_07_nothing_is_served_without_the_security_header(
    server: Endpoint, metadata: Metadata
) -> None:
    for method in wire.X509_AND_JWT:
        assert server.status(method, metadata=metadata) != OK, method.name


def test_WE_08_a_missing_security_header_is_invalid_argument(server: Endpoint) -> None:
    assert server.status(wire.X509_SVID, metadata=()) == INVALID_ARGUMENT
    assert server.status(wire.X509_SVID) == OK


def test_WE_09_the_server_needs_no_tls(server: Endpoint) -> None:
    # The suite's client has no TLS.
    assert server.status(wire.X509_BUNDLES) == OK


def test_WE_14_a_client_needs_no_credentials(server: Endpoint) -> None:
    # The security header has the same value for all clients.
    assert server.status(wire.X509_SVID, metadata=wire.SECURITY_HEADER) == OK
    assert server.status(wire.JWT_SVID, metadata=wire.SECURITY_HEADER) == OK


def test_WE_18_a_server_that_cannot_serve_at_the_moment_is_unavailable(failing: Endpoint) -> None:
    for method in (wire.X509_SVID, wire.JWT_SVID):
        assert failing.status(method) == UNAVAILABLE, method.name


def test_WE_19_a_caller_without_identity_gets_permission_denied(stranger: Endpoint) -> None:
    assert stranger.status(wire.X509_SVID) == PERMISSION_DENIED


@pytest.mark.parametrize("path", ["/SpiffeWorkloadAPI/FetchNothing", "/NoSuchAPI/FetchX509SVID"])
def test_WE_20_an_unknown_method_is_unimplemented(server: Endpoint, path: str) -> None:
    with server.open(path, b"") as call, pytest.raises(CallError) as refusal:
        call.next(wire.X509_SVID.response)
    assert refusal.value.code == UNIMPLEMENTED


def test_WE_21_the_standard_service_has_the_standard_methods_only(reflection: Reflection) -> None:
    methods = {method.name for method in wire.X509_AND_JWT + wire.WIT}
    assert set(reflection.methods(wire.SERVICE)) <= methods


def test_WE_22_the_workload_api_is_exposed(server: Endpoint) -> None:
    assert server.status(wire.X509_SVID) != UNIMPLEMENTED


def test_WE_23_reflection_lists_the_workload_api(server: Endpoint) -> None:
    assert wire.SERVICE in Reflection(server).services()
