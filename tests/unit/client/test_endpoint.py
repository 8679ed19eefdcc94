"""Addresses of an agent's socket: URIs of paths that hold any character."""

from __future__ import annotations

import os
import socket
from concurrent import futures
from pathlib import Path

import grpc
import pytest

from agent.client.endpoint import endpoint_uri, grpc_target, parse_endpoint
from tests.support.agent import SAFETY_SECONDS

NAMES = ["plain", "a%41b", "50%", "a b", "a#b", "a?b", "a;b", "a:b", "ä", os.fsdecode(b"\xff")]


@pytest.mark.parametrize("name", NAMES)
def test_a_path_survives_the_way_to_a_uri_and_back(name: str) -> None:
    path = Path("/run") / name / "agent.sock"
    uri = endpoint_uri(path)
    assert uri.isascii()
    assert parse_endpoint(uri) == path


@pytest.mark.parametrize("name", NAMES)
def test_grpc_finds_the_socket_that_has_this_path(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    server = grpc.server(futures.ThreadPoolExecutor(1))
    server.add_insecure_port(grpc_target(path))
    server.start()
    try:
        with socket.socket(socket.AF_UNIX) as plain:
            plain.connect(os.fsencode(path))
        with grpc.insecure_channel(grpc_target(path)) as channel:
            grpc.channel_ready_future(channel).result(timeout=SAFETY_SECONDS)
    finally:
        server.stop(None).wait()


def test_a_grpc_target_is_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert grpc_target(Path("a b")) == f"unix:{tmp_path}/a%20b"


@pytest.mark.parametrize("text", ["unix:///run/a.sock", "unix:/run/a.sock", "unix:///run/%61.sock"])
def test_an_endpoint_is_a_uri_with_an_absolute_path(text: str) -> None:
    assert parse_endpoint(text) == Path("/run/a.sock")


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("/run/a.sock", "write unix:///run/a.sock"),
        ("/run/a b%", "write unix:///run/a%20b%25"),
        ("unix:run/a.sock", "write three slashes, unix:///run/a.sock"),
        ("unix://run/a.sock", "write three slashes, unix:///run/a.sock"),
        ("unix:///run/a.sock?x=1", "a query or a fragment"),
        ("unix:///run/a.sock#x", "a query or a fragment"),
        ("tcp://127.0.0.1:8000", "is not of the form unix:///"),
        ("", "is not of the form unix:///"),
    ],
)
def test_the_error_about_a_wrong_endpoint_names_the_right_form(text: str, advice: str) -> None:
    with pytest.raises(ValueError, match=advice):
        parse_endpoint(text)
