"""Workload Endpoint: vouchd's command line as a client."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import h2.config
import h2.connection
import h2.events
import pytest

from agent.client.endpoint import parse_endpoint
from tests.conftest import AgentFactory
from tests.support.agent import REPOSITORY

if TYPE_CHECKING:
    from collections.abc import Iterator

REQUESTS = (
    ("fetch", "x509"),
    ("fetch", "jwt", "-a", "somebody"),
    ("fetch", "bundles"),
    ("watch", "x509"),
    ("validate", "jwt", "-a", "somebody", "token"),
    ("health",),
)


def _vouchd(*arguments: str, endpoint: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"SPIFFE_ENDPOINT_SOCKET": endpoint}
    return subprocess.run(
        [sys.executable, "-m", "agent", *arguments],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )


class _Refuser:
    """A server that answers every call with UNAVAILABLE and records the headers."""

    def __init__(self, listener: socket.socket) -> None:
        self.requests: list[list[tuple[str, str]]] = []
        self._listener = listener

    def serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return  # shut down
            # The client may close after its answer, or connect only to probe the socket.
            with connection, suppress(ConnectionError):
                self._serve_connection(connection)

    def _serve_connection(self, connection: socket.socket) -> None:
        http = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        http.initiate_connection()
        connection.sendall(http.data_to_send())
        while data := connection.recv(65536):
            for event in http.receive_data(data):
                if isinstance(event, h2.events.RequestReceived):
                    self._refuse(http, event)
            connection.sendall(http.data_to_send())

    def _refuse(self, http: h2.connection.H2Connection, event: h2.events.RequestReceived) -> None:
        self.requests.append([(_text(name), _text(value)) for name, value in event.headers or []])
        trailers = [
            (":status", "200"),
            ("content-type", "application/grpc"),
            ("grpc-status", "14"),
        ]
        http.send_headers(event.stream_id or 0, trailers, end_stream=True)


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


@contextmanager
def _refuser(path: Path) -> Iterator[_Refuser]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()
        server = _Refuser(listener)
        thread = threading.Thread(target=server.serve)
        thread.start()
        try:
            yield server
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.mark.parametrize("command", REQUESTS, ids=lambda command: " ".join(command[:2]))
def test_WE_06_each_request_carries_the_security_header(
    tmp_path: Path, command: tuple[str, ...]
) -> None:
    path = tmp_path / "s"
    with _refuser(path) as server:
        _vouchd(*command, endpoint=f"unix://{path}")
    assert server.requests
    for headers in server.requests:
        sent = [value for name, value in headers if name == "workload.spiffe.io"]
        assert sent == ["true"], dict(headers)[":path"]


def test_WE_10_the_client_reads_the_endpoint_from_the_environment(
    agent_factory: AgentFactory, tmp_path: Path
) -> None:
    good = _vouchd("fetch", "x509", endpoint=agent_factory().address)
    assert good.returncode == 0, good.stderr
    assert "spiffe://" in good.stdout
    nowhere = _vouchd("fetch", "x509", endpoint=f"unix://{tmp_path}/nowhere.sock")
    assert nowhere.returncode == 1
    assert "nowhere.sock" in nowhere.stderr


def _refuses(*endpoints: str) -> None:
    for endpoint in endpoints:
        with pytest.raises(ValueError):  # noqa: PT011 - the test is about refusal, not its text
            parse_endpoint(endpoint)


def test_WE_11_an_endpoint_is_a_uri_with_a_known_scheme() -> None:
    assert parse_endpoint("unix:///run/agent.sock") == Path("/run/agent.sock")
    _refuses("/run/agent.sock", "run/agent.sock", "file:///run/agent.sock", "http://127.0.0.1:80")
    _refuses("", "unix", "unix-abstract:agent")


def test_WE_12_unix_takes_an_absolute_path_and_nothing_else() -> None:
    assert parse_endpoint("unix:/run/agent.sock") == Path("/run/agent.sock")
    assert parse_endpoint("unix:///run/with%20blank") == Path("/run/with blank")
    _refuses("unix://run/agent.sock", "unix:agent.sock", "unix:", "unix://", "unix://localhost/a")
    _refuses("unix:///run/agent.sock?a", "unix:///run/agent.sock#a", "unix://me@/run/agent.sock")


def test_WE_13_tcp_takes_an_ip_address_and_a_port_and_nothing_else() -> None:
    _refuses("tcp://127.0.0.1", "tcp://127.0.0.1:8000/foo", "tcp://localhost:8000", "tcp://:8000")
    _refuses("tcp://127.0.0.1:8000?a", "tcp://127.0.0.1:8000#a", "tcp://me@127.0.0.1:8000")
    # vouchd has no TCP client: a valid address is refused too, and never taken for a path.
    _refuses("tcp://127.0.0.1:8000")
