"""Misbehaving clients against a running agent: it serves on, leaks nothing, logs one line."""

from __future__ import annotations

import os
import resource
import selectors
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import grpc
import h2.exceptions
import h2.settings
import psutil
import pytest

from agent.client.admin import AdminClient
from agent.pb import workloadapi_pb2 as pb
from tests.support import pids, raw
from tests.support.agent import REPOSITORY, SAFETY_SECONDS, RunningAgent

WAIT_SECONDS = 15.0

# The agent is not dumpable: only root may read its directory in /proc.
counts_descriptors = pytest.mark.skipif(
    os.getuid() != 0, reason="only root may list the agent's descriptors"
)


@pytest.fixture
def agent(agent_factory: Callable[..., RunningAgent]) -> RunningAgent:
    agent = agent_factory()
    fetch(agent)  # creates all that the agent creates at first use
    return agent


def fetch(agent: RunningAgent) -> pb.X509SVIDResponse:
    client = raw.connect(str(agent.socket))
    try:
        return client.fetch_x509()
    finally:
        client.sock.close()


def connect(agent: RunningAgent) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.connect(str(agent.socket))
    sock.settimeout(WAIT_SECONDS)
    return sock


def descriptors(agent: RunningAgent) -> int:
    return len(os.listdir(f"/proc/{agent.pid}/fd"))


def settles(agent: RunningAgent, limit: int) -> bool:
    """Whether the number of the agent's descriptors falls to `limit` within some calls."""
    for _ in range(2000):
        fetch(agent)
        if descriptors(agent) <= limit:
            return True
    return False


def until_ended(sock: socket.socket) -> bytes:
    """All bytes until the agent ends the connection."""
    data = b""
    try:
        while chunk := sock.recv(65536):
            data += chunk
    except ConnectionResetError:
        pass
    return data


def half_close(sock: socket.socket) -> None:
    sock.shutdown(socket.SHUT_WR)


def reset(sock: socket.socket) -> None:
    """Close with unread bytes (the settings frame), which resets the other side (unix(7))."""
    sock.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
    sock.recv(1)
    sock.close()


def garbage(sock: socket.socket) -> None:
    sock.sendall(os.urandom(4096))


def http_1(sock: socket.socket) -> None:
    sock.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")


def huge_frame(sock: socket.socket) -> None:
    sock.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
    sock.sendall(b"\xff\xff\xff\0\0\0\0\0\1" + b"x" * 1000)


@counts_descriptors
@pytest.mark.parametrize(
    ("misbehave", "event"),
    [
        (half_close, "connection ended without a call"),
        (reset, "connection ended without a call"),
        (garbage, "connection refused"),
        (http_1, "connection refused"),
        (huge_frame, "connection refused"),
    ],
)
def test_a_misbehaving_connection_is_closed_with_one_log_line(
    agent: RunningAgent, misbehave: Callable[[socket.socket], None], event: str
) -> None:
    before = descriptors(agent)
    with connect(agent) as sock:
        misbehave(sock)
        if sock.fileno() >= 0:
            until_ended(sock)
    line = agent.wait_for_log(event)
    assert f"pid={os.getpid()}" in line
    assert f"uid={os.getuid()}" in line
    assert agent.log.count("connection ended") + agent.log.count("connection refused") == 1
    assert settles(agent, before)


def test_a_silent_connection_is_closed(agent: RunningAgent) -> None:
    with connect(agent) as sock:
        until_ended(sock)
    assert "no request within 10 s" in agent.wait_for_log("connection ended without a call")


def test_garbage_after_a_valid_call_ends_only_its_own_connection(agent: RunningAgent) -> None:
    good = raw.connect(str(agent.socket))
    good.fetch_x509()
    bad = raw.connect(str(agent.socket))
    bad.fetch_x509()
    bad.sock.sendall(b"\xff" * 100)
    until_ended(bad.sock)
    bad.sock.close()
    good.fetch_x509()
    good.sock.close()


def test_a_client_that_hangs_up_with_a_closed_window_is_no_internal_error(
    agent: RunningAgent,
) -> None:
    """With a closed window the response waits; it fails when the client disconnects."""
    client = raw.connect(str(agent.socket))
    client.http.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 0})
    client.flush()
    stream = client.call("FetchX509SVID", pb.X509SVIDRequest())
    served = agent.log.count("svid issued")
    client.read()
    agent.wait_for_log("svid issued", since=served)
    client.sock.close()
    with AdminClient(agent.admin_socket, SAFETY_SECONDS) as admin:
        while admin.status()["connections"]:
            pass
    assert stream
    assert "internal error" not in agent.log
    assert "Traceback" not in agent.log


def test_a_client_that_does_not_read_cannot_grow_the_agents_memory(agent: RunningAgent) -> None:
    """It sends requests without end: the agent stops making responses that are not read."""
    process = psutil.Process(agent.pid)  # noqa: TID251 - to measure it
    client = raw.connect(str(agent.socket))
    client.fetch_x509()
    before = process.memory_info().rss
    client.sock.settimeout(1.0)
    request = pb.JWTSVIDRequest(audience=[f"{n}-" + "x" * 190 for n in range(20)])
    with suppress(TimeoutError, h2.exceptions.ProtocolError):
        for _ in range(20_000):
            client.call("FetchJWTSVID", request)
        raise AssertionError("the agent took all requests")
    fetch(agent)
    grown = process.memory_info().rss - before
    client.sock.close()
    assert grown < 64 << 20


@counts_descriptors
def test_a_thousand_connections_at_once_are_all_served(agent: RunningAgent) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    before = descriptors(agent)
    with ExitStack() as stack:
        clients = [raw.RawClient(stack.enter_context(connect(agent))) for _ in range(1000)]
        calls = []
        for client in clients:
            client.start()
            calls.append(client.call("FetchX509SVID", pb.X509SVIDRequest()))
        answers = [client.message(call) for client, call in zip(clients, calls, strict=True)]
        assert len(set(answers)) == 1
        assert descriptors(agent) - before <= 5 * 1000
    assert settles(agent, before)


@counts_descriptors
def test_ten_thousand_short_connections_leave_no_descriptor(agent: RunningAgent) -> None:
    before = descriptors(agent)
    for _ in range(10_000):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.connect(str(agent.socket))  # connect(2) waits while the agent's queue is full
    assert settles(agent, before)


@counts_descriptors
def test_an_agent_out_of_descriptors_waits_and_then_serves_on(agent: RunningAgent) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.prlimit(agent.pid, resource.RLIMIT_NOFILE, (descriptors(agent) + 20, hard))
    with ExitStack() as stack:
        for _ in range(50):
            stack.enter_context(connect(agent))
        agent.wait_for_log("cannot accept connections")
    assert fetched_in_the_end(agent).svids
    assert agent.log.count("cannot accept connections") == 1, "not one line for each attempt"


def fetched_in_the_end(agent: RunningAgent) -> pb.X509SVIDResponse:
    """Fetch like a client that connects again after a closed connection."""
    for _ in range(100):
        try:
            return fetch(agent)
        except (OSError, raw.ConnectionEndedError):
            continue
    raise AssertionError("the agent never served again")


@counts_descriptors
def test_a_process_that_dies_in_a_call_leaves_no_descriptor(agent: RunningAgent) -> None:
    before = descriptors(agent)

    def child() -> None:
        client = raw.connect(str(agent.socket))
        client.call("FetchX509SVID", pb.X509SVIDRequest())
        os.kill(os.getpid(), signal.SIGKILL)

    for _ in range(50):
        assert pids.reap(pids.fork(child)) == -signal.SIGKILL
    assert settles(agent, before)


def test_streams_end_with_unavailable_at_stop(agent: RunningAgent) -> None:
    with grpc.insecure_channel(agent.address) as channel:
        stream = channel.unary_stream(
            "/SpiffeWorkloadAPI/FetchX509SVID",
            request_serializer=pb.X509SVIDRequest.SerializeToString,
            response_deserializer=pb.X509SVIDResponse.FromString,
        )(pb.X509SVIDRequest(), metadata=(("workload.spiffe.io", "true"),))
        next(stream)
        assert agent.stop() == 0
        with pytest.raises(grpc.RpcError):
            next(stream)
        assert stream.code() is grpc.StatusCode.UNAVAILABLE
    assert not agent.socket.exists()


def test_a_second_agent_refuses_to_start_and_the_first_serves_on(agent: RunningAgent) -> None:
    other = agent.directory / "other.yaml"
    other.write_text(agent.config.read_text().replace("data_dir: data", "data_dir: other"))
    for config, complaint in [
        (agent.config, "another agent uses the data directory"),
        (other, "another agent is serving on"),
    ]:
        second = subprocess.run(
            [sys.executable, "-m", "agent", "run", "-c", config],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=False,
        )
        assert second.returncode == 1
        assert complaint in second.stderr
        assert len(second.stderr.splitlines()) == 1
    assert fetch(agent).svids


def test_an_agent_started_again_after_kill_9_serves_the_same_authority(agent: RunningAgent) -> None:
    bundle = fetch(agent).svids[0].bundle
    agent.kill()
    assert agent.socket.exists(), "kill -9 leaves the socket file"
    agent.start()
    assert fetch(agent).svids[0].bundle == bundle


def test_a_health_check_is_no_connection_without_a_call(agent: RunningAgent) -> None:
    with grpc.insecure_channel(agent.address) as channel:
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=bytes,
            response_deserializer=bytes,
        )
        assert check(b"") == b"\x08\x01", "SERVING"
    with connect(agent) as sock:
        half_close(sock)
        until_ended(sock)
    agent.wait_for_log("connection ended without a call")
    assert agent.log.count("connection ended without a call") == 1


def test_a_log_without_a_reader_delays_no_caller(agent: RunningAgent) -> None:
    """The reader of stderr stops; one line for each connection would soon fill the pipe."""
    _read, write = os.pipe()
    config = agent.directory / "agent.yaml"
    agent.stop()
    stalled = subprocess.Popen(
        [sys.executable, "-m", "agent", "run", "-c", config], cwd=REPOSITORY, stderr=write
    )
    try:
        with os.fdopen(_read) as pipe:
            assert "ready" in pipe.readline()
            for _ in range(2000):
                connect(agent).close()
            assert fetch(agent).svids
            stalled.terminate()
            assert stalled.wait(WAIT_SECONDS) == 0
    finally:
        stalled.kill()
        stalled.wait()
        os.close(write)


@pytest.mark.skipif(os.getuid() == 0, reason="root may read the memory of every process")
def test_the_agents_own_user_cannot_read_its_memory(agent: RunningAgent) -> None:
    with pytest.raises(PermissionError):
        Path(f"/proc/{agent.pid}/mem").open("rb")  # noqa: SIM115 - it fails to open


def test_a_client_that_reads_byte_by_byte_gets_the_whole_response(agent: RunningAgent) -> None:
    client = raw.connect(str(agent.socket))
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, struct.unpack("i", b"\0\1\0\0")[0])
    stream = client.call("FetchX509SVID", pb.X509SVIDRequest())
    with selectors.DefaultSelector() as selector:
        selector.register(client.sock, selectors.EVENT_READ)
        while not client.calls[stream].messages:
            assert selector.select(WAIT_SECONDS)
            for event in client.http.receive_data(client.sock.recv(1)):
                client._take(event)
    assert pb.X509SVIDResponse.FromString(client.message(stream)).svids
    client.sock.close()
