"""Paths, Unix sockets and loopback addresses in settings.

A relative path starts at the directory of the settings file, which pydantic's context carries.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import PurePath
from typing import Annotated

from pydantic import BeforeValidator, ValidationInfo, WithJsonSchema

from agent.config.values import as_text
from agent.kernel.credentials import MAX_SOCKET_PATH

MAX_PORT = 65535

# A text that ends like a port is an address; a path of such a name can be written as ./NAME.
_ADDRESS = re.compile(r"(?:\[(?P<v6>[^/]*)\]|(?P<v4>[^/\[\]]*)):(?P<port>[0-9]{1,9})")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopbackAddress:
    """A TCP address that only this host can reach.

    Raises:
        ValueError: another host can reach it, or the port is not valid.
    """

    host: str
    port: int

    def __post_init__(self) -> None:
        if not _is_loopback(self.host):
            raise ValueError(
                f"{self.host or 'every address'} is not a loopback address: the agent has no"
                ' password for it. Write 127.0.0.1:PORT, "[::1]:PORT" or the path of a Unix'
                " socket, and let an authenticating proxy serve other hosts"
            )
        if not 1 <= self.port <= MAX_PORT:
            raise ValueError(f"{self.port} is not a port: write one from 1 to {MAX_PORT}")

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # a host name can resolve to any address


def _parse_path(value: object, info: ValidationInfo) -> PurePath:
    text = as_text(value)
    if text.startswith("~"):
        raise ValueError(f"{text!r}: '~' is not expanded, write the directory out")
    if "\0" in text:
        raise ValueError("a path cannot contain a NUL byte")
    base, path = info.context, PurePath(text)
    if not isinstance(base, PurePath):
        raise TypeError("settings are validated by parse_settings only")
    # The base contains no links (agent.config.files), so `..` can be resolved without the disk.
    while path.parts[:1] == ("..",):
        base, path = base.parent, PurePath(*path.parts[1:])
    return base / path


def _parse_socket_path(value: object, info: ValidationInfo) -> PurePath:
    path = _parse_path(value, info)
    length = len(str(path).encode())
    if length > MAX_SOCKET_PATH:
        raise ValueError(f"{str(path)!r} has {length} bytes; Linux allows {MAX_SOCKET_PATH}")
    return path


def _parse_listen(value: object, info: ValidationInfo) -> PurePath | LoopbackAddress:
    text = as_text(value)
    if found := _ADDRESS.fullmatch(text):
        return LoopbackAddress(host=found["v6"] or found["v4"], port=int(found["port"]))
    return _parse_socket_path(text, info)


_SCHEMA = WithJsonSchema({"type": "string", "minLength": 1, "format": "path"})

FilePath = Annotated[PurePath, BeforeValidator(_parse_path), _SCHEMA]
"""A path, made absolute."""
SocketPath = Annotated[PurePath, BeforeValidator(_parse_socket_path), _SCHEMA]
"""A path that fits into a Unix socket address."""
OptionalSocketPath = Annotated[PurePath | None, BeforeValidator(_parse_socket_path), _SCHEMA]
Listen = Annotated[PurePath | LoopbackAddress | None, BeforeValidator(_parse_listen), _SCHEMA]
"""The path of a Unix socket, or a loopback address with a port."""
