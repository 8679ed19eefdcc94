"""HTTP requests of Prometheus and of a probe, and a parser of the exposition format."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, TypeAlias

from prometheus_client.parser import text_string_to_metric_families

from tests.support.agent import SAFETY_SECONDS

if TYPE_CHECKING:
    from pathlib import Path

Where: TypeAlias = "Path | tuple[str, int]"
Series: TypeAlias = "dict[str, float]"


def free_port() -> int:
    """Return a loopback port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


def connect(where: Where) -> socket.socket:
    """Connect to the telemetry server."""
    if isinstance(where, tuple):
        return socket.create_connection(where, SAFETY_SECONDS)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(SAFETY_SECONDS)
    try:
        sock.connect(str(where))
    except OSError:
        sock.close()
        raise
    return sock


def ask(where: Where, request: bytes) -> tuple[int, bytes]:
    """Send a request; return the response's status and body, (0, b"") if none arrived."""
    with connect(where) as sock:
        received = b""
        try:
            sock.sendall(request)
            while chunk := sock.recv(65536):
                received += chunk
        except (BrokenPipeError, ConnectionResetError):
            pass
    head, _, body = received.partition(b"\r\n\r\n")
    return (int(head.split()[1]) if head else 0), body


def get(where: Where, path: str) -> tuple[int, str]:
    """Send a GET request; return the response's status and body."""
    status, body = ask(where, f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    return status, body.decode()


def series(text: str) -> Series:
    """Return the samples of an exposition by `name{label="value"}`, labels sorted."""
    return {
        f"{sample.name}{{{_labels(sample.labels)}}}": sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def scrape(where: Where) -> Series:
    """Return the present samples of `/metrics`."""
    status, body = get(where, "/metrics")
    assert status == 200, body
    return series(body)


def changes(before: Series, after: Series) -> Series:
    """Return the differences of samples that have changed."""
    return {name: after[name] - before[name] for name in after if after[name] != before[name]}


def _labels(labels: dict[str, str]) -> str:
    return ",".join(f'{name}="{value}"' for name, value in sorted(labels.items()))
