"""Which Workload API is under test, and what the tests ask of it again and again.

With `--workload-socket` it is whatever listens there. Without, it is vouchd: one agent for the
whole run, and others in situations that only somebody in control of the server can bring about.
"""

from __future__ import annotations

from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from agent.pb import workloadapi_pb2 as pb
from tests.conformance import wire
from tests.conformance.documents import Token, X509Svid, certificates, json_object, trust_domain
from tests.conformance.reflection import Reflection
from tests.conformance.wire import CallError, Endpoint
from tests.support.agent import RunningAgent, entry_for_me

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from cryptography import x509

_HERE = Path(__file__).parent
_OPTION = "--workload-socket"
_MARKERS = {
    "needs_control": "starts or stops agents of its own: skips when a socket is given",
    "of_vouchd": "tests vouchd's code or command line: skips when a socket is given",
}
AUDIENCE = ["spiffe://conformance.example/service", "second audience"]
NOT_MINE = "spiffe://{}/conformance/nobody/has/this"

# --- options and markers -------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        _OPTION,
        metavar="URI",
        help="the Workload API to test, such as unix:///run/spire/public/api.sock",
    )


def pytest_configure(config: pytest.Config) -> None:
    for name, meaning in _MARKERS.items():
        config.addinivalue_line("markers", f"{name}: {meaning}")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    # Not among the fixture's own parameters: in a run over all tests, the marker is known only now.
    if "endpoint" in metafunc.fixturenames:
        several = pytest.param("several", marks=pytest.mark.needs_control)
        metafunc.parametrize("endpoint", ["given", several], indirect=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if _given_uri(config) is None:
        return
    for item in items:
        if item.path.is_relative_to(_HERE):
            for name in filter(item.get_closest_marker, _MARKERS):
                item.add_marker(pytest.mark.skip(reason=f"{name}: {_MARKERS[name]}"))


def _given_uri(config: pytest.Config) -> str | None:
    # Without the default, a run over all tests would fail: there the option is not known in time.
    uri: str | None = config.getoption(_OPTION, None)
    return uri


# --- endpoints -----------------------------------------------------------------------------------


@contextmanager
def _serving(pytestconfig: pytest.Config, entries: str, **options: Any) -> Iterator[Endpoint]:
    """An agent of our own with these entries; with a socket given, that one, and no agent."""
    uri = _given_uri(pytestconfig)
    if uri is not None:
        yield Endpoint.parse(uri)
        return
    agent = RunningAgent(entries, **options)
    try:
        yield Endpoint.parse(agent.address)
    finally:
        agent.close()


@pytest.fixture(scope="session")
def given(pytestconfig: pytest.Config) -> Iterator[Endpoint]:
    """The Workload API under test. This process has at least one identity there."""
    with _serving(pytestconfig, entry_for_me()) as endpoint:
        yield endpoint


def _entry(path: str, **fields: object) -> str:
    return entry_for_me(path, **fields).removeprefix("entries:\n")


LONGEST_ID = "spiffe://example.org/" + "a" * (2048 - len("spiffe://example.org/"))
SEVERAL = (
    "spiffe://example.org/zulu",
    "spiffe://example.org/alpha",
    "spiffe://example.org/mike",
    LONGEST_ID,
)
"""The identities of this process at `several`, in order; the two in the middle share a hint."""


@pytest.fixture(scope="session")
def several(pytestconfig: pytest.Config) -> Iterator[Endpoint]:
    """Needs control. An agent with four identities for this process: see SEVERAL."""
    hints = ("", "shared", "shared", "")
    entries = (_entry(i, **({"hint": h} if h else {})) for i, h in zip(SEVERAL, hints, strict=True))
    with _serving(pytestconfig, "entries:\n" + "".join(entries)) as endpoint:
        yield endpoint


@pytest.fixture(scope="session")
def stranger(pytestconfig: pytest.Config) -> Iterator[Endpoint]:
    """Needs control. An agent with entries, none of which is for this process."""
    entries = "entries:\n  - {spiffe_id: /else, selectors: ['unix:path:/nobody/is/this']}\n"
    with _serving(pytestconfig, entries) as endpoint:
        yield endpoint


_FAILING_ATTESTOR = """
from attestors.api import AttestorError, Options


class Failing:
    name = "failing"
    Options = Options
    timeout = 1.0

    def __init__(self, options, context):
        pass

    async def attest(self, workload):
        raise AttestorError("it cannot find out")

    async def close(self):
        pass
"""


@pytest.fixture(scope="session")
def unable(
    pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Endpoint]:
    """Needs control. An agent whose attestor cannot find out what this process is."""
    site = tmp_path_factory.mktemp("site")
    (site / "failing.py").write_text(_FAILING_ATTESTOR)
    package = site / "failing-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: failing\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text("[vouchd.attestors]\nfailing = failing:Failing\n")
    entries = "entries: [{spiffe_id: /a, selectors: ['failing:x']}]\n"
    options = {"config": "attestors: {failing: {}}", "env": {"PYTHONPATH": str(site)}}
    with _serving(pytestconfig, entries, **options) as endpoint:
        yield endpoint


@pytest.fixture
def endpoint(request: pytest.FixtureRequest, given: Endpoint, several: Endpoint) -> Endpoint:
    """The Workload API under test, and again with several identities (pytest_generate_tests)."""
    return {"given": given, "several": several}[request.param]


@pytest.fixture
def reflection(given: Endpoint) -> Reflection:
    """What the endpoint says of itself; it need not say anything."""
    reflection = Reflection(given)
    try:
        reflection.services()
    except CallError as error:
        if error.code != wire.UNIMPLEMENTED:
            raise
        pytest.skip("there is no server reflection here")
    return reflection


# --- what they answer ----------------------------------------------------------------------------


@pytest.fixture
def x509_response(endpoint: Endpoint) -> pb.X509SVIDResponse:
    return endpoint.ask(wire.X509_SVID, pb.X509SVIDResponse)


@pytest.fixture
def x509_svids(x509_response: pb.X509SVIDResponse) -> list[X509Svid]:
    """Never empty, so that a loop over them proves something."""
    assert x509_response.svids
    return [X509Svid(svid) for svid in x509_response.svids]


@pytest.fixture
def leaves(x509_svids: list[X509Svid]) -> list[x509.Certificate]:
    return [svid.leaf for svid in x509_svids]


@pytest.fixture
def own_domain(x509_svids: list[X509Svid]) -> str:
    """The name of the trust domain of the default identity."""
    return x509_svids[0].trust_domain


@pytest.fixture
def x509_bundles(endpoint: Endpoint) -> dict[str, bytes]:
    return dict(endpoint.ask(wire.X509_BUNDLES, pb.X509BundlesResponse).bundles)


@pytest.fixture
def authorities(x509_bundles: dict[str, bytes], own_domain: str) -> list[x509.Certificate]:
    """The signing certificates of our own trust domain. Never empty."""
    found = certificates(x509_bundles[f"spiffe://{own_domain}"])
    assert found
    return found


@pytest.fixture
def jwt_bundles(endpoint: Endpoint) -> dict[str, bytes]:
    return dict(endpoint.ask(wire.JWT_BUNDLES, pb.JWTBundlesResponse).bundles)


@pytest.fixture
def jwks(jwt_bundles: dict[str, bytes], own_domain: str) -> dict[str, Any]:
    """The JWK Set of our own trust domain."""
    return json_object(jwt_bundles[f"spiffe://{own_domain}"])


@pytest.fixture
def jwt_response(endpoint: Endpoint) -> pb.JWTSVIDResponse:
    """Tokens for AUDIENCE."""
    return endpoint.ask(wire.JWT_SVID, pb.JWTSVIDResponse, pb.JWTSVIDRequest(audience=AUDIENCE))


@pytest.fixture
def tokens(jwt_response: pb.JWTSVIDResponse) -> list[Token]:
    """Never empty, and all signed by our trust domain's keys."""
    assert jwt_response.svids
    return [Token(svid.svid) for svid in jwt_response.svids]


@pytest.fixture
def token(tokens: list[Token]) -> Token:
    """The token of the default identity."""
    return tokens[0]


@dataclass(frozen=True, slots=True)
class Validator:
    """Asks an endpoint to judge tokens."""

    endpoint: Endpoint

    def __call__(self, token: str, audience: str = AUDIENCE[0]) -> pb.ValidateJWTSVIDResponse:
        """The endpoint's answer.

        Raises:
            CallError: it refuses the token.
        """
        request = pb.ValidateJWTSVIDRequest(audience=audience, svid=token)
        return self.endpoint.ask(wire.VALIDATE, pb.ValidateJWTSVIDResponse, request)

    def status(self, token: str, audience: str = AUDIENCE[0]) -> int:
        """How the call ends."""
        request = pb.ValidateJWTSVIDRequest(audience=audience, svid=token)
        return self.endpoint.status(wire.VALIDATE, request)


@pytest.fixture
def validate(endpoint: Endpoint, token: Token) -> Validator:
    """Refuses bad tokens, having been seen to accept the good one that they are made from."""
    validator = Validator(endpoint)
    assert trust_domain(validator(token.text).spiffe_id)
    return validator


# --- the passing of time -------------------------------------------------------------------------

RENEWED = "spiffe://example.org/renewed"
LASTING = "spiffe://example.org/lasting"
LOST_FIRST = "spiffe://example.org/lost-first"
LOST_LAST = "spiffe://example.org/lost-last"


@dataclass(frozen=True, slots=True)
class History:
    """Two FetchX509SVID streams, as far as they went.

    In `renewals` the first of two identities (RENEWED, LASTING) has been renewed between any two
    messages. `losses` is the whole of a stream that ended because its identities (LOST_FIRST,
    LOST_LAST) were lost one after the other.
    """

    renewals: list[pb.X509SVIDResponse]
    losses: list[pb.X509SVIDResponse]
    end: CallError


@pytest.fixture(scope="session")
def history(pytestconfig: pytest.Config) -> History:
    """Needs control."""
    if _given_uri(pytestconfig) is not None:
        pytest.skip("needs_control")
    with (
        _stream(_entry(RENEWED, x509_svid_ttl="4s") + _entry(LASTING)) as (_, renewing),
        _stream(_entry(LOST_FIRST) + _entry(LOST_LAST)) as (agent, losing),
    ):
        losses = [losing.next(pb.X509SVIDResponse)]
        agent.entries.write_text(f"entries:\n{_entry(LOST_LAST)}")
        losses.append(losing.next(pb.X509SVIDResponse))
        agent.entries.write_text("entries: []\n")
        with suppress(CallError):
            while True:
                losses.append(losing.next(pb.X509SVIDResponse))
        renewals = [renewing.next(pb.X509SVIDResponse) for _ in range(3)]
        return History(renewals, losses, losing.end())


@contextmanager
def _stream(entries: str) -> Iterator[tuple[RunningAgent, wire.Call]]:
    agent = RunningAgent(f"entries:\n{entries}")
    try:
        with Endpoint.parse(agent.address).stream(wire.X509_SVID) as call:
            yield agent, call
    finally:
        agent.close()
