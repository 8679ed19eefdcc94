"""An agent with small limits, and calls that need no identity."""

from __future__ import annotations

import socket
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from agent.api.methods import MAX_REQUEST_BYTES
from agent.pb import workloadapi_pb2 as pb
from tests.conftest import AgentFactory
from tests.support.abuse import END_HEADERS, HEADERS, PREFACE, SETTINGS, call_headers, frame
from tests.support.agent import SAFETY_SECONDS, RunningAgent, entry_for_me
from tests.support.raw import GO_AWAY
from tests.support.scrape import get, series

# One user in one cgroup has half of streams and attestations: six calls.
SIX_CALLS = """
limits:
  streams: 100
  streams_per_user: 6
  attestations: 100
  attestations_per_user: 6
"""


def test_open_health_watches_count_against_the_quota(agent_factory: AgentFactory) -> None:
    agent = agent_factory(config=SIX_CALLS)
    with grpc.insecure_channel(agent.address) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        watches = [health.Watch(health_pb2.HealthCheckRequest()) for _ in range(6)]
        assert all(next(watch).status for watch in watches)
        with suppress(grpc.RpcError):  # the client may try again on another connection
            next(health.Watch(health_pb2.HealthCheckRequest()))
        with pytest.raises(grpc.RpcError) as cut:
            next(watches[0])
        assert cut.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "too many calls of this user" in agent.wait_for_log("connection refused")
    with grpc.insecure_channel(agent.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        assert health.Check(health_pb2.HealthCheckRequest()).status


def test_a_reflection_call_counts_as_a_call(agent_factory: AgentFactory) -> None:
    agent = agent_factory()
    with grpc.insecure_channel(agent.address) as channel:
        assert "SpiffeWorkloadAPI" in ProtoReflectionDescriptorDatabase(channel).get_services()
    assert agent.stop() == 0
    assert "without a call" not in agent.log


def half_requests(path: Path, number: int) -> bool:
    """Send so many calls without their requests; whether the connection stays open."""
    with closing(socket.socket(socket.AF_UNIX)) as sock:
        sock.settimeout(SAFETY_SECONDS)
        sock.connect(str(path))
        calls = [frame(HEADERS, END_HEADERS, 2 * n + 1, call_headers()) for n in range(number)]
        sock.sendall(PREFACE + frame(SETTINGS) + b"".join(calls))
        arrived = b""
        # A cut connection may still answer the first PING, which can come with the last call.
        for question in (b"answer 1", b"answer 2"):
            try:
                sock.sendall(frame(6, 0, 0, question))
                while question not in arrived:
                    chunk = sock.recv(65536)
                    if not chunk:
                        return False
                    arrived += chunk
            except (ConnectionResetError, BrokenPipeError):
                return False
    assert GO_AWAY not in arrived
    return True


def test_calls_without_a_whole_request_count_against_the_quota(agent_factory: AgentFactory) -> None:
    agent = agent_factory(entry_for_me(), config=SIX_CALLS)
    assert half_requests(agent.socket, 6)
    assert not half_requests(agent.socket, 7)
    # The calls of a connection count until the agent has noticed its end.
    assert any(half_requests(agent.socket, 6) for _ in range(100))


def jwt(channel: grpc.Channel, request: bytes, *metadata: tuple[str, str]) -> grpc.StatusCode:
    """The status code of FetchJWTSVID with these request bytes."""
    method: Any = channel.unary_unary("/SpiffeWorkloadAPI/FetchJWTSVID")
    try:
        method(
            request, metadata=(("workload.spiffe.io", "true"), *metadata), timeout=SAFETY_SECONDS
        )
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()
        return code
    return grpc.StatusCode.OK


def refusals(agent: RunningAgent, reason: str) -> float:
    status, text = get(agent.directory / "t.sock", "/metrics")
    assert status == 200
    return series(text)[f'vouchd_refusals_total{{reason="{reason}"}}']


def test_a_request_over_the_size_limit_is_refused_logged_and_counted(
    agent_factory: AgentFactory,
) -> None:
    agent = agent_factory(entry_for_me(), config="telemetry: {listen: t.sock}")
    most = MAX_REQUEST_BYTES
    with grpc.insecure_channel(agent.address) as channel:
        assert jwt(channel, bytes(most)) is grpc.StatusCode.INVALID_ARGUMENT, "it is small enough"
        assert jwt(channel, bytes(most + 1)) is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert jwt(channel, bytes(most)) is grpc.StatusCode.INVALID_ARGUMENT, "it stays open"
    assert f"{most + 1} bytes" in agent.wait_for_log("code=RESOURCE_EXHAUSTED")
    assert refusals(agent, "size") == 1


def test_metadata_passes_up_to_the_limit_and_is_refused_above_it(
    agent_factory: AgentFactory,
) -> None:
    agent = agent_factory(entry_for_me(), config="telemetry: {listen: t.sock}")
    request = pb.JWTSVIDRequest(audience=["a"]).SerializeToString()
    with grpc.insecure_channel(agent.address) as channel:
        assert jwt(channel, request, ("x", "~" * 6_000)) is grpc.StatusCode.OK
        assert jwt(channel, request, ("x", "~" * 20_000)) is grpc.StatusCode.UNAVAILABLE
    assert "a header block is too large" in agent.wait_for_log("connection refused")
    assert refusals(agent, "excess") >= 1, "gRPC's client tries again"
