"""The journal's side of its native protocol: a socket that takes events, and what they say."""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path
from typing import Self


class FakeJournal:
    """Listens as journald does. A context manager: it owns the socket."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.settimeout(10)

    def __enter__(self) -> Self:
        self._socket.bind(str(self.path))
        return self

    def __exit__(self, *_exception: object) -> None:
        self._socket.close()
        self.path.unlink()

    def event(self) -> dict[str, bytes]:
        """The next event. One that comes as a file must be sealed, as journald wants it."""
        data, descriptors, _flags, _address = socket.recv_fds(self._socket, 1 << 20, 1)
        for descriptor in descriptors:
            with os.fdopen(descriptor, "rb") as file:
                seals = fcntl.fcntl(file, fcntl.F_GET_SEALS)
                assert seals & fcntl.F_SEAL_WRITE
                assert not data
                file.seek(0)
                data = file.read()
        return decode(data)


def decode(data: bytes) -> dict[str, bytes]:
    """The fields of an event, by the rules of the protocol."""
    fields: dict[str, bytes] = {}
    while data:
        head, _, data = data.partition(b"\n")
        name, equals, value = head.partition(b"=")
        if not equals:
            length = int.from_bytes(data[:8], "little")
            value, end, data = (
                data[8 : 8 + length],
                data[8 + length : 9 + length],
                data[9 + length :],
            )
            assert end == b"\n"
        fields[name.decode()] = value
    return fields
