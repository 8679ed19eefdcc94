"""General gRPC tools without SPIFFE support: health probe and reflection."""

from __future__ import annotations

from tests.conftest import AgentFactory
from tests.interop.foreign import ForeignClient
from tests.support.agent import TRUST_DOMAIN


def test_a_health_probe_needs_no_header(
    agent_factory: AgentFactory, reflecting: ForeignClient
) -> None:
    assert reflecting.once(agent_factory(), "health") == {"status": "SERVING"}


def test_grpcurl_calls_the_api_by_reflection(
    agent_factory: AgentFactory, reflecting: ForeignClient
) -> None:
    got = reflecting.once(agent_factory(), "reflection")

    assert got["services"] == [
        "SpiffeWorkloadAPI",
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
    ]
    assert got["methods"] == [
        "FetchJWTBundles",
        "FetchJWTSVID",
        "FetchWITBundles",
        "FetchWITSVID",
        "FetchX509Bundles",
        "FetchX509SVID",
        "ValidateJWTSVID",
    ]
    assert got["spiffe_ids"] == [f"spiffe://{TRUST_DOMAIN}/test/me"]
    assert got["bundles"] == [f"spiffe://{TRUST_DOMAIN}"]
    assert "INVALID_ARGUMENT" in got["without_header"]
