"""The gRPC libraries of other languages share a connection among calls, and end streams early."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conftest import AgentFactory
from tests.interop.foreign import ForeignClient
from tests.interop.test_clients import squeezed
from tests.support import scrape
from tests.support.agent import TRUST_DOMAIN, RunningAgent

LISTEN = "telemetry: {listen: t.sock}"
ME = f"spiffe://{TRUST_DOMAIN}/test/me"
STREAMS = 'vouchd_streams{method="FetchX509SVID"}'
SCRAPES = 1000


@pytest.fixture(scope="module", params=["grpc_js", "java_spiffe", "rust_spiffe"])
def client(request: pytest.FixtureRequest) -> ForeignClient:
    found = request.getfixturevalue(request.param)
    assert isinstance(found, ForeignClient)
    return found


def test_call_without_the_security_header_is_refused(
    agent_factory: AgentFactory, client: ForeignClient
) -> None:
    errors = client.once(agent_factory(), "headerless")

    assert sorted(errors) == ["jwt", "jwt_bundles", "x509", "x509_bundles"]
    for error in errors.values():
        assert "security header missing" in error
        assert "invalidargument" in squeezed(error)


@pytest.mark.parametrize("calls", [100, 250])
def test_calls_at_once_share_one_connection(
    agent_factory: AgentFactory, client: ForeignClient, calls: int
) -> None:
    """A connection has 100 streams at most: the library begins more when others end."""
    agent = agent_factory(config=LISTEN)
    with client.running(agent, "many", str(calls)) as program:
        answers = program.next()
        metrics = when_streams_have_ended(agent)

    assert answers == {"spiffe_ids": [ME] * calls}
    assert metrics["vouchd_connections{}"] == 1
    assert metrics['vouchd_calls_total{code="OK",method="FetchJWTSVID"}'] == calls // 2


@pytest.mark.parametrize(
    ("how", "status"), [("deadline", "deadlineexceeded"), ("cancel", "cancelled")]
)
def test_stream_that_the_client_ends_leaves_the_connection_usable(
    agent_factory: AgentFactory, client: ForeignClient, how: str, status: str
) -> None:
    agent = agent_factory(config=LISTEN)
    with client.running(agent, "ended", how) as program:
        answer = program.next()
        metrics = when_streams_have_ended(agent)

    assert {**answer, "status": squeezed(answer["status"])} == {
        "updates": 1,
        "status": status,
        "spiffe_id": ME,
    }
    assert metrics["vouchd_connections{}"] == 1


def when_streams_have_ended(agent: RunningAgent) -> dict[str, Any]:
    """Return the agent's metrics once it has no open stream; a client is not told of that."""
    where = agent.directory / "t.sock"
    for _ in range(SCRAPES):
        metrics = scrape.scrape(where)
        if metrics[STREAMS] == 0:
            return metrics
    raise AssertionError("the agent still has a stream")
