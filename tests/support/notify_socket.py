"""The service manager's end of a notify socket (sd_notify(3))."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.agent import SAFETY_SECONDS


class NotifySocket:
    """Receives notifications. `address` is the value of NOTIFY_SOCKET."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(f"\0{address[1:]}" if address[0] == "@" else address)
        self._socket.settimeout(SAFETY_SECONDS)

    def receive(self) -> dict[str, str]:
        """Return the fields of the next message."""
        lines = self._socket.recv(4096).decode().splitlines()
        return dict(line.split("=", 1) for line in lines)

    def receive_until(self, field: str, holds: Callable[[str], bool] = bool) -> dict[str, str]:
        """Return the first message with a value of `field` that `holds` accepts."""
        message = self.receive()
        while not holds(message.get(field, "")):
            message = self.receive()
        return message

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def notify_socket(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[NotifySocket]:
    path = f"{tmp_path}/notify" if request.param == "path" else f"@vouchd-test-{os.getpid()}"
    notify_socket = NotifySocket(path)
    yield notify_socket
    notify_socket.close()
