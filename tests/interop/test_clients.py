"""The public SPIFFE client libraries fetch, verify and watch SVIDs of a real agent."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from agent.clock import SystemClock
from tests.conftest import AgentFactory
from tests.interop.foreign import ForeignClient
from tests.support.agent import TRUST_DOMAIN, RunningAgent

AUDIENCES = ["orders.example", "https://billing.example/api"]
FIRST = f"spiffe://{TRUST_DOMAIN}/test/first"
SECOND = f"spiffe://{TRUST_DOMAIN}/test/second"
SVID_TTL = timedelta(seconds=4)
SHORT_LIVED = f"authority: {{x509_svid_ttl: {SVID_TTL.seconds}s}}"


def entries_for(uid: int) -> str:
    return f"""
entries:
  - {{spiffe_id: /test/first, selectors: ["unix:uid:{uid}"], hint: default, dns_names: [a.test]}}
  - {{spiffe_id: /test/second, selectors: ["unix:uid:{uid}"], hint: other}}
"""


MINE = entries_for(os.getuid())
OTHER_USERS = entries_for(os.getuid() + 1)


@pytest.fixture(scope="module", params=["ec-p256", "ec-p384", "rsa-2048"])
def agent(request: pytest.FixtureRequest) -> Iterator[RunningAgent]:
    """An agent whose authority has a key of each type."""
    running = RunningAgent(MINE, config=f"authority: {{key_type: {request.param}}}")
    yield running
    running.close()


CLIENTS = ["py_spiffe", "defakto", "go_spiffe", "grpc_js", "java_spiffe", "rust_spiffe"]


@pytest.fixture(scope="module", params=CLIENTS)
def client(request: pytest.FixtureRequest) -> ForeignClient:
    found = request.getfixturevalue(request.param)
    assert isinstance(found, ForeignClient)
    return found


@pytest.fixture(scope="module")
def fetched(agent: RunningAgent, client: ForeignClient) -> Any:
    return client.once(agent, "fetch", *AUDIENCES)


def test_client_verifies_the_svids_and_bundles_it_fetches(fetched: Any) -> None:
    assert fetched["svids"] == [
        {"spiffe_id": spiffe_id, "verified_as": spiffe_id, "key_matches": True}
        for spiffe_id in (FIRST, SECOND)
    ]
    assert list(fetched["x509_bundles"]) == [TRUST_DOMAIN]
    assert len(fetched["x509_bundles"][TRUST_DOMAIN]) == 1
    assert fetched["x509_svid_bundle"] == fetched["x509_bundles"]


def test_a_jwt_is_accepted_for_each_of_its_audiences_and_for_no_other(fetched: Any) -> None:
    jwt = fetched["jwt"]

    assert jwt["spiffe_id"] == FIRST
    assert sorted(jwt["audience"]) == sorted(AUDIENCES)
    assert jwt["validated_by_client"] == [FIRST, FIRST]
    assert jwt["validated_by_agent"] == [FIRST, FIRST]
    assert "aud" in jwt["wrong_audience_by_client"].lower()
    assert "audience" in jwt["wrong_audience_by_agent"]
    assert "invalidargument" in squeezed(jwt["wrong_audience_by_agent"])


def test_client_without_an_identity_gets_permission_denied(
    agent_factory: AgentFactory, client: ForeignClient
) -> None:
    errors = client.once(agent_factory(OTHER_USERS), "refused")

    assert sorted(errors) == ["jwt", "jwt_bundles", "x509", "x509_bundles"]
    for error in errors.values():
        assert "no identity issued" in error
        assert "permissiondenied" in squeezed(error)


def test_a_watcher_gets_renewals_and_survives_a_restart(
    agent_factory: AgentFactory, client: ForeignClient
) -> None:
    agent = agent_factory(MINE, config=SHORT_LIVED)
    with client.running(agent, "watch") as watcher:
        first = watcher.next()
        renewed = watcher.next(lambda update: update["serial"] != first["serial"])
        agent.stop()
        stopped = SystemClock().now()
        agent.start()
        # An SVID that was issued before the stop expires earlier.
        recovered = watcher.next(
            lambda update: datetime.fromisoformat(update["expires_at"]) > stopped + SVID_TTL
        )

    for update in (first, renewed, recovered):
        assert update["spiffe_id"] == FIRST
        assert update["authorities"] == first["authorities"]
    assert recovered["serial"] not in {first["serial"], renewed["serial"]}


def test_a_watcher_gets_the_svid_of_an_edited_entry(
    agent_factory: AgentFactory, client: ForeignClient
) -> None:
    agent = agent_factory(MINE)
    with client.running(agent, "watch") as watcher:
        before = watcher.next()
        agent.entries.write_text(MINE.replace("/test/first", "/test/edited"))
        agent.hang_up()
        after = watcher.next(lambda update: update["spiffe_id"] != FIRST)

    assert before["spiffe_id"] == FIRST
    assert after["spiffe_id"] == f"spiffe://{TRUST_DOMAIN}/test/edited"
    assert after["authorities"] == before["authorities"]


def test_client_with_an_identity_for_its_path_answers_each_challenge(
    agent_factory: AgentFactory, client: ForeignClient
) -> None:
    """The agent challenges before each update with a PING; the HTTP/2 library answers it."""
    program = Path(shutil.which(client.argv[0]) or "").resolve()
    entry = f'{{spiffe_id: /test/first, selectors: ["unix:path:{program}"]}}'
    agent = agent_factory(f"entries: [{entry}]", config=SHORT_LIVED)
    with client.running(agent, "watch") as watcher:
        serials = {watcher.next()["serial"] for _ in range(3)}
    assert len(serials) == 3


def squeezed(error: str) -> str:
    """Return the text in lower case without `_`: Python's PERMISSION_DENIED as Go spells it."""
    return error.lower().replace("_", "")
