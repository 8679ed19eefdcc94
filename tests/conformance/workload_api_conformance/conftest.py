"""Options, the servers under test, and their answers as fixtures."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from . import wire
from .documents import Token, X509Svid, certificates, json_object, trust_domain
from .expectations import AUDIENCE, History, Validator
from .pb import workload_pb2 as pb
from .reflection import Reflection
from .situations import Control, Situation
from .wire import CallError, Endpoint

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cryptography import x509

# --- options -------------------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("workload API")
    group.addoption(
        "--workload-socket",
        metavar="URI",
        help="the Workload API to test (default: SPIFFE_ENDPOINT_SOCKET); the process that runs "
        "the tests needs at least one identity there",
    )
    group.addoption(
        "--control",
        metavar="COMMAND",
        help="a command that starts servers in the situations that README.md lists",
    )


def _socket(config: pytest.Config) -> str | None:
    uri: str | None = config.getoption("--workload-socket")
    return uri or os.environ.get("SPIFFE_ENDPOINT_SOCKET")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--collect-only"):
        return
    uri = _socket(config)
    if not uri and not config.getoption("--control"):
        raise pytest.UsageError(
            "no Workload API to test: give --workload-socket URI, set SPIFFE_ENDPOINT_SOCKET, "
            "or give --control COMMAND"
        )
    if uri:
        try:
            Endpoint.parse(uri)
        except ValueError as error:
            raise pytest.UsageError(str(error)) from error


# --- servers -------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def control(pytestconfig: pytest.Config) -> Control:
    return Control(pytestconfig.getoption("--control"))


@pytest.fixture(scope="session")
def one(pytestconfig: pytest.Config, control: Control) -> Iterator[Situation]:
    """The Workload API under test."""
    uri = _socket(pytestconfig)
    if uri:
        yield Situation(Endpoint.parse(uri))
        return
    with control.situation("one") as situation:
        yield situation


@pytest.fixture(scope="session")
def server(one: Situation) -> Endpoint:
    """The endpoint of the Workload API under test."""
    return one.endpoint


@pytest.fixture(scope="session")
def several(control: Control) -> Iterator[Situation]:
    """A server with four identities for this process."""
    with control.situation("several") as situation:
        yield situation


@pytest.fixture(scope="session")
def stranger(control: Control) -> Iterator[Endpoint]:
    """A server without an identity for this process."""
    with control.situation("none") as situation:
        yield situation.endpoint


@pytest.fixture(scope="session")
def failing(control: Control) -> Iterator[Endpoint]:
    """A server that cannot attest this process at the moment."""
    with control.situation("failing") as situation:
        yield situation.endpoint


@pytest.fixture
def stopping(control: Control) -> Iterator[Situation]:
    """A server that stops at its next step."""
    with control.situation("stopping") as situation:
        yield situation


@pytest.fixture(params=["one", "several"])
def situation(request: pytest.FixtureRequest) -> Situation:
    """The Workload API under test, and a server with several identities."""
    found: Situation = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def endpoint(situation: Situation) -> Endpoint:
    return situation.endpoint


@pytest.fixture
def reflection(server: Endpoint) -> Reflection:
    """The server's reflection; the test is skipped where there is none."""
    reflection = Reflection(server)
    try:
        reflection.services()
    except CallError as error:
        if error.code != wire.UNIMPLEMENTED:
            raise
        pytest.skip("the server has no server reflection")
    return reflection


# --- answers -------------------------------------------------------------------------------------


@pytest.fixture
def x509_response(endpoint: Endpoint) -> pb.X509SVIDResponse:
    return endpoint.ask(wire.X509_SVID, pb.X509SVIDResponse)


@pytest.fixture
def x509_svids(x509_response: pb.X509SVIDResponse) -> list[X509Svid]:
    """At least one, so that a loop over them proves something."""
    assert x509_response.svids
    return [X509Svid(svid) for svid in x509_response.svids]


@pytest.fixture
def leaves(x509_svids: list[X509Svid]) -> list[x509.Certificate]:
    return [svid.leaf for svid in x509_svids]


@pytest.fixture
def own_domain(x509_svids: list[X509Svid]) -> str:
    """The name of the default identity's trust domain."""
    return x509_svids[0].trust_domain


@pytest.fixture
def x509_bundles(endpoint: Endpoint) -> dict[str, bytes]:
    return dict(endpoint.ask(wire.X509_BUNDLES, pb.X509BundlesResponse).bundles)


@pytest.fixture
def authorities(x509_bundles: dict[str, bytes], own_domain: str) -> list[x509.Certificate]:
    """The signing certificates of the own trust domain; at least one."""
    found = certificates(x509_bundles[f"spiffe://{own_domain}"])
    assert found
    return found


@pytest.fixture
def jwt_bundles(endpoint: Endpoint) -> dict[str, bytes]:
    return dict(endpoint.ask(wire.JWT_BUNDLES, pb.JWTBundlesResponse).bundles)


@pytest.fixture
def jwks(jwt_bundles: dict[str, bytes], own_domain: str) -> dict[str, Any]:
    """The JWK Set of the own trust domain."""
    return json_object(jwt_bundles[f"spiffe://{own_domain}"])


@pytest.fixture
def jwt_response(endpoint: Endpoint) -> pb.JWTSVIDResponse:
    """Tokens for AUDIENCE."""
    return endpoint.ask(wire.JWT_SVID, pb.JWTSVIDResponse, pb.JWTSVIDRequest(audience=AUDIENCE))


@pytest.fixture
def tokens(jwt_response: pb.JWTSVIDResponse) -> list[Token]:
    """At least one."""
    assert jwt_response.svids
    return [Token(svid.svid) for svid in jwt_response.svids]


@pytest.fixture
def token(tokens: list[Token]) -> Token:
    """The token of the default identity."""
    return tokens[0]


@pytest.fixture
def validate(endpoint: Endpoint, token: Token) -> Validator:
    """A validator that accepts the good token, from which the tests make bad ones."""
    validator = Validator(endpoint)
    assert trust_domain(validator(token.text).spiffe_id)
    return validator


@pytest.fixture(scope="session")
def history(control: Control) -> History:
    """The streams of two servers: one renews an identity, one takes identities away."""
    with (
        control.situation("renewing") as renewing,
        control.situation("losing") as losing,
        renewing.endpoint.stream(wire.X509_SVID) as renewed,
        losing.endpoint.stream(wire.X509_SVID) as lost,
    ):
        losses = [lost.next(pb.X509SVIDResponse)]
        losing.next_step()
        losses.append(lost.next(pb.X509SVIDResponse))
        losing.next_step()
        with suppress(CallError):
            while True:
                losses.append(lost.next(pb.X509SVIDResponse))
        renewals = [renewed.next(pb.X509SVIDResponse) for _ in range(3)]
        return History(
            renewals=renewals,
            renewing_ids=list(renewing.spiffe_ids),
            losses=losses,
            losing_ids=list(losing.spiffe_ids),
            end=lost.end(),
        )
