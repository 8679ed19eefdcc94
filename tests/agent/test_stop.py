"""The stop of an agent, as its clients see it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from agent.pb import workloadapi_pb2 as pb
from tests.conftest import AgentFactory
from tests.support import raw
from tests.support.activated import ActivatedAgent
from tests.support.agent import REPOSITORY, SAFETY_SECONDS, entry_for_me

LOAD = [sys.executable, "-m", "tests.support.load"]
METADATA = (("workload.spiffe.io", "true"),)


@pytest.fixture
def activated() -> Iterator[ActivatedAgent]:
    agent = ActivatedAgent(entry_for_me())
    yield agent
    agent.close()


def stream(channel: grpc.Channel) -> Any:
    method = channel.unary_stream(
        "/SpiffeWorkloadAPI/FetchX509SVID",
        request_serializer=pb.X509SVIDRequest.SerializeToString,
        response_deserializer=pb.X509SVIDResponse.FromString,
    )
    return method(pb.X509SVIDRequest(), metadata=METADATA, timeout=SAFETY_SECONDS)


def test_streams_end_with_unavailable_and_a_retry_hint(
    agent_factory: AgentFactory,
) -> None:
    agent = agent_factory()
    with grpc.insecure_channel(agent.address) as channel:
        call = stream(channel)
        next(call)
        assert agent.stop() == 0
        with pytest.raises(grpc.RpcError):
            next(call)
        assert call.code() is grpc.StatusCode.UNAVAILABLE
        assert "try again" in call.details()
        hints = {key: int(value) for key, value in call.trailing_metadata()}
        assert 0 <= hints["grpc-retry-pushback-ms"] <= 1000
    assert "call refused" not in agent.log


def test_a_restart_behind_a_passed_socket_fails_no_call(activated: ActivatedAgent) -> None:
    with subprocess.Popen(
        [*LOAD, str(activated.socket), "20"],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as load:
        assert load.stdout is not None
        assert json.loads(load.stdout.readline()) == {"clients": 20}
        assert activated.stop() == 0
        activated.start()
        report = json.loads(load.communicate()[0])
    assert report["failures"] == []
    assert report["fetched"] >= 20


def test_a_socket_mode_without_effect_on_a_passed_socket_is_a_warning() -> None:
    agent = ActivatedAgent(entry_for_me(), config='socket_mode: "0600"')
    try:
        line = agent.wait_for_log("setting=socket_mode")
        assert "setting has no effect" in line
        assert "SocketMode=" in line
        assert "socket_group" not in agent.log
    finally:
        agent.close()


def test_a_channel_that_stays_open_over_a_restart_calls_again_without_an_error(
    activated: ActivatedAgent,
) -> None:
    with grpc.insecure_channel(f"unix:{activated.socket}") as channel:
        next(stream(channel))
        activated.stop()
        activated.start()
        assert next(stream(channel)).svids


def test_a_call_sent_before_the_goaway_arrived_is_answered(
    agent_factory: AgentFactory,
) -> None:
    agent = agent_factory()
    client = raw.connect(str(agent.socket), kind=raw.StayingClient)
    client.read()
    os.kill(agent.pid, signal.SIGTERM)
    arrived = b""
    while raw.GO_AWAY not in arrived:
        chunk = client.sock.recv(65536)
        assert chunk, "the connection ended without GOAWAY"
        arrived += chunk
    stream = client.call("FetchX509SVID", pb.X509SVIDRequest())
    # Only now the client acknowledges the PING that follows the GOAWAY, after its call.
    client.receive(arrived)
    assert pb.X509SVIDResponse.FromString(client.message(stream)).svids
    assert client.status(stream).status == raw.UNAVAILABLE
    client.sock.close()
    assert agent.stop() == 0


def test_a_health_watch_is_not_serving_before_the_agent_is_gone(
    agent_factory: AgentFactory,
) -> None:
    agent = agent_factory()
    statuses = []
    with grpc.insecure_channel(agent.address) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        watch = health.Watch(health_pb2.HealthCheckRequest(service="SpiffeWorkloadAPI"))
        statuses.append(next(watch).status)
        os.kill(agent.pid, signal.SIGTERM)
        with pytest.raises(grpc.RpcError):
            statuses.extend(each.status for each in watch)
    serving = health_pb2.HealthCheckResponse.SERVING
    assert statuses == [serving, health_pb2.HealthCheckResponse.NOT_SERVING]
    assert agent.stop() == 0
