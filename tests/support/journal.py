"""A fake journald: a socket for the native protocol, and a decoder of its events."""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path
from typing import Self

from tests.support.agent import SAFETY_SECONDS


class FakeJournal:
    """A socket with journald's native protocol. A context manager."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.settimeout(SAFETY_SECONDS)

    def __enter__(self) -> Self:
        self._socket.bind(str(self.path))
        return self

    def __exit__(self, *_exception: object) -> None:
        self._socket.close()
        self.path.unlink()

    def event(self) -> dict[str, bytes]:
        """Return the next event. An event in a memfd must be sealed, as journald requires."""
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
    """Decode the fields of an event (systemd, JOURNAL_NATIVE_PROTOCOL)."""
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
