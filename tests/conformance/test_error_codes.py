"""Which status answers which failure, as far as a client can bring the failure about."""
# The ids keep the form they have in requirements.md.
# ruff: noqa: N802

from __future__ import annotations

from contextlib import ExitStack

import pytest

from agent.pb import workloadapi_pb2 as pb
from tests.conformance import wire
from tests.conformance.conftest import AUDIENCE, History, Validator
from tests.conformance.documents import Token, base64url, encode
from tests.conformance.wire import (
    INVALID_ARGUMENT,
    OK,
    PERMISSION_DENIED,
    UNAVAILABLE,
    UNIMPLEMENTED,
    Endpoint,
    Method,
)
from tests.conftest import AgentFactory

# Against the rules of SPIFFE-ID, one each.
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
    given: Endpoint, method: Method
) -> None:
    for metadata in (
        (),
        (("workload.spiffe.io", "True"),),
        (("workload.spiffe.io", "false"),),
        (("workload.spiffe.io", "true"), ("workload.spiffe.io", "false")),
        (("workload.spiffe.io", "true, true"),),
    ):
        assert given.status(method, metadata=metadata) == INVALID_ARGUMENT, metadata


@pytest.mark.needs_control
@pytest.mark.parametrize("method", wire.X509_AND_JWT, ids=lambda method: method.name)
def test_EC_02_a_caller_without_identity_is_denied(stranger: Endpoint, method: Method) -> None:
    assert stranger.status(method) == PERMISSION_DENIED


def test_EC_03_an_id_of_somebody_else_is_denied(endpoint: Endpoint, own_domain: str) -> None:
    for domain in (own_domain, "unknown.conformance.example"):
        request = pb.JWTSVIDRequest(audience=AUDIENCE, spiffe_id=f"spiffe://{domain}/not/mine")
        assert endpoint.status(wire.JWT_SVID, request) == PERMISSION_DENIED


@pytest.mark.parametrize("malformed", MALFORMED_IDS)
def test_EC_04_a_malformed_id_is_invalid_argument(
    given: Endpoint, own_id: str, malformed: str
) -> None:
    spiffe_id = malformed.format(own_id.split("/")[2])
    request = pb.JWTSVIDRequest(audience=AUDIENCE, spiffe_id=spiffe_id)
    assert given.status(wire.JWT_SVID, request) == INVALID_ARGUMENT


@pytest.fixture
def own_id(given: Endpoint) -> str:
    return given.ask(wire.X509_SVID, pb.X509SVIDResponse).svids[0].spiffe_id


@pytest.mark.parametrize("audience", [[], [""], ["good", ""]], ids=repr)
def test_EC_05_no_audience_or_a_blank_one_is_invalid_argument(
    given: Endpoint, audience: list[str]
) -> None:
    request = pb.JWTSVIDRequest(audience=audience)
    assert given.status(wire.JWT_SVID, request) == INVALID_ARGUMENT


def test_EC_06_validation_of_nothing_or_for_nobody_is_invalid_argument(
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
def test_EC_07_whatever_is_no_valid_token_is_invalid_argument(given: Endpoint, text: str) -> None:
    assert Validator(given).status(text) == INVALID_ARGUMENT


@pytest.mark.needs_control
def test_EC_08_what_cannot_be_found_out_now_is_unavailable(unable: Endpoint) -> None:
    assert unable.status(wire.X509_SVID) == UNAVAILABLE
    assert unable.status(wire.JWT_SVID) == UNAVAILABLE
    assert unable.status(wire.X509_BUNDLES) == UNAVAILABLE


def test_EC_09_an_unserved_wit_profile_is_unimplemented(given: Endpoint) -> None:
    assert {given.status(method) for method in wire.WIT} in ({UNIMPLEMENTED}, {OK})


@pytest.mark.needs_control
def test_EC_11_an_identity_that_is_lost_ends_its_stream_with_permission_denied(
    history: History,
) -> None:
    assert history.losses
    assert history.end.code == PERMISSION_DENIED


@pytest.mark.needs_control
def test_EC_12_when_the_server_stops_its_streams_are_unavailable(
    agent_factory: AgentFactory,
) -> None:
    agent = agent_factory()
    endpoint = Endpoint.parse(agent.address)
    with ExitStack() as stack:
        calls = [stack.enter_context(endpoint.stream(method)) for method in wire.STREAMS]
        for call, method in zip(calls, wire.STREAMS, strict=True):
            call.next(method.response)
        agent.stop()
        assert [call.end().code for call in calls] == [UNAVAILABLE] * len(calls)


def test_EC_14_a_token_of_a_trust_domain_without_bundle_is_invalid_argument(
    token: Token, validate: Validator
) -> None:
    foreign = token.altered(claims={"sub": "spiffe://unknown.conformance.example/workload"})
    assert validate.status(foreign) == INVALID_ARGUMENT
