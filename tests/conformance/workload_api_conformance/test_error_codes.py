"""Status codes of failures that a client or the control command can cause."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from . import wire
from .documents import Token, base64url, encode
from .expectations import AUDIENCE, History, Validator
from .pb import workload_pb2 as pb
from .situations import Situation
from .wire import (
    INVALID_ARGUMENT,
    OK,
    PERMISSION_DENIED,
    UNAVAILABLE,
    UNIMPLEMENTED,
    Endpoint,
    Method,
)

# Each breaks one rule of SPIFFE-ID.
MALFORMED_IDS = (
    "https://{}/a",
    "{}/a",
    "spiffe:///a",
    "spiffe://{}/a?b=c",
    "spiffe://{}/a#b",
    "spiffe://user@{}/a",
    "spiffe://{}:443/a",
    "spiffe://%61.{}/a",
    "spiffe://{}/%61",
    "spiffe://{}//a",
    "spiffe://{}/a/../b",
    "spiffe://{}/./a",
    "spiffe://{}/a/",
    "spiffe://{}/a b",
    "spiffe://{}/ä",
)


@pytest.mark.parametrize("method", wire.X509_AND_JWT, ids=lambda method: method.name)
def test_EC_01_a_missing_wrong_or_repeated_header_is_invalid_argument(
    server: Endpoint, method: Method
) -> None:
    for metadata in (
        (),
        (("workload.spiffe.io", "True"),),
        (("workload.spiffe.io", "false"),),
        (("workload.spiffe.io", "true"), ("workload.spiffe.io", "false")),
        (("workload.spiffe.io", "true, true"),),
    ):
        assert server.status(method, metadata=metadata) == INVALID_ARGUMENT, metadata


@pytest.mark.parametrize("method", wire.X509_AND_JWT, ids=lambda method: method.name)
def test_EC_02_a_caller_without_identity_is_denied(stranger: Endpoint, method: Method) -> None:
    assert stranger.status(method) == PERMISSION_DENIED


def test_EC_03_an_id_that_is_not_the_callers_is_denied(endpoint: Endpoint, own_domain: str) -> None:
    for domain in (own_domain, "unknown.conformance.example"):
        request = pb.JWTSVIDRequest(audience=AUDIENCE, spiffe_id=f"spiffe://{domain}/not/mine")
        assert endpoint.status(wire.JWT_SVID, request) == PERMISSION_DENIED


@pytest.mark.parametrize("malformed", MALFORMED_IDS)
def test_EC_04_a_malformed_id_is_invalid_argument(
    server: Endpoint, own_id: str, malformed: str
) -> None:
    spiffe_id = malformed.format(own_id.split("/")[2])
    request = pb.JWTSVIDRequest(audience=AUDIENCE, spiffe_id=spiffe_id)
    assert server.status(wire.JWT_SVID, request) == INVALID_ARGUMENT


@pytest.fixture
def own_id(server: Endpoint) -> str:
    return server.ask(wire.X509_SVID, pb.X509SVIDResponse).svids[0].spiffe_id


@pytest.mark.parametrize("audience", [[], [""], ["good", ""]], ids=repr)
def test_EC_05_no_audience_or_a_blank_one_is_invalid_argument(
    server: Endpoint, audience: list[str]
) -> None:
    request = pb.JWTSVIDRequest(audience=audience)
    assert server.status(wire.JWT_SVID, request) == INVALID_ARGUMENT


def test_EC_06_validation_without_token_or_audience_is_invalid_argument(
    token: Token, validate: Validator
) -> None:
    assert validate.status("") == INVALID_ARGUMENT
    assert validate.status(token.text, "") == INVALID_ARGUMENT


@pytest.mark.parametrize(
    "text",
    [
        "garbage",
        "..",
        "e30.e30.",
        f"{encode({'alg': 'ES256'})}.{base64url(b'not JSON')}.{base64url(bytes(64))}",
        f"{encode({'alg': 'ES256', 'kid': 1})}.{encode({'sub': 1})}.{base64url(bytes(64))}",
        f"{encode({'alg': ['ES256']})}.{encode({})}.{base64url(bytes(64))}",
        f"{base64url(b'[' * 5000)}.{base64url(b'[' * 5000)}.{base64url(bytes(64))}",
        "\u2603.\u2603.\u2603",
    ],
    ids=["text", "dots", "unsigned", "no claims", "no texts", "list", "deep", "snowmen"],
)
def test_EC_07_an_invalid_token_is_invalid_argument(server: Endpoint, text: str) -> None:
    assert Validator(server).status(text) == INVALID_ARGUMENT


def test_EC_08_failed_attestation_is_unavailable(failing: Endpoint) -> None:
    assert failing.status(wire.X509_SVID) == UNAVAILABLE
    assert failing.status(wire.JWT_SVID) == UNAVAILABLE
    assert failing.status(wire.X509_BUNDLES) == UNAVAILABLE


def test_EC_09_an_unserved_wit_profile_is_unimplemented(server: Endpoint) -> None:
    assert {server.status(method) for method in wire.WIT} in ({UNIMPLEMENTED}, {OK})


def test_EC_11_loss_of_the_last_identity_ends_the_stream_with_permission_denied(
    history: History,
) -> None:
    assert history.losses
    assert history.end.code == PERMISSION_DENIED


def test_EC_12_a_stop_of_the_server_ends_its_streams_with_unavailable(
    stopping: Situation,
) -> None:
    with ExitStack() as stack:
        calls = [stack.enter_context(stopping.endpoint.stream(method)) for method in wire.STREAMS]
        for call, method in zip(calls, wire.STREAMS, strict=True):
            call.next(method.response)
        stopping.next_step()
        assert [call.end().code for call in calls] == [UNAVAILABLE] * len(calls)


def test_EC_14_a_token_of_a_trust_domain_without_bundle_is_invalid_argument(
    token: Token, validate: Validator
) -> None:
    foreign = token.altered(claims={"sub": "spiffe://unknown.conformance.example/workload"})
    assert validate.status(foreign) == INVALID_ARGUMENT
