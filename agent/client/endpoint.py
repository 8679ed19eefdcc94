"""Addresses of an agent's socket: the endpoint URI of the SPIFFE standard, and gRPC's target.

Both are URIs, so that a path with `%`, `?`, `#` or a space must be percent-encoded (RFC 3986
section 2.1). Paths are bytes to the kernel: their bytes are encoded, UTF-8 or not.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote_to_bytes, urlsplit

if TYPE_CHECKING:
    from pathlib import PurePath

ENDPOINT_VARIABLE = "SPIFFE_ENDPOINT_SOCKET"


def endpoint_uri(path: PurePath) -> str:
    """Return the value of SPIFFE_ENDPOINT_SOCKET for a socket at an absolute path."""
    return f"unix://{quote(bytes(path))}"


def grpc_target(path: Path) -> str:
    """Return gRPC's name of a Unix socket, for a channel or a server.

    Source: https://github.com/grpc/grpc/blob/master/doc/naming.md
    """
    return f"unix:{quote(bytes(path.absolute()))}"


def parse_endpoint(text: str) -> Path:
    """Read the value of SPIFFE_ENDPOINT_SOCKET (SPIFFE Workload Endpoint section 4).

    Raises:
        ValueError: it does not name a Unix socket.
    """
    if text.startswith("/"):
        uri = endpoint_uri(Path(text))
        raise ValueError(f"{text!r} is a path where a URI is wanted: write {uri}")
    uri_parts = urlsplit(text)
    if uri_parts.scheme != "unix":
        raise ValueError(f"{text!r} is not of the form unix:///run/vouchd/agent.sock")
    if uri_parts.netloc or not uri_parts.path.startswith("/"):
        path = f"{uri_parts.netloc}{uri_parts.path}".lstrip("/")
        raise ValueError(f"{text!r} has no absolute path: write three slashes, unix:///{path}")
    if uri_parts.query or uri_parts.fragment:
        raise ValueError(
            f"{text!r} has a query or a fragment behind its path: remove it, or write %3F for a"
            " question mark and %23 for a number sign that is part of the path"
        )
    return Path(os.fsdecode(unquote_to_bytes(uri_parts.path)))
