"""A notify socket for a program's readiness (sd_notify(3))."""

from __future__ import annotations

import os
import select
import socket
from typing import TYPE_CHECKING, Self

from tests.support.agent import SAFETY_SECONDS

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

_MESSAGE_BYTES = 4096


class Ready:
    """A notify socket for one program. A context manager.

    Start the program with `environment`, then `wait`.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / "notify.sock"
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.bind(str(self._path))
        self._path.chmod(0o666)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._sock.close()
        self._path.unlink()

    @property
    def environment(self) -> dict[str, str]:
        """This process's environment, with NOTIFY_SOCKET."""
        return {**os.environ, "NOTIFY_SOCKET": str(self._path)}

    def wait(self, program: subprocess.Popen[bytes]) -> dict[str, str]:
        """Wait for READY=1 and return all fields received.

        Raises:
            AssertionError: the program ended, or was not ready within SAFETY_SECONDS.
        """
        fields: dict[str, str] = {}
        pidfd = os.pidfd_open(program.pid)
        try:
            while fields.get("READY") != "1":
                ends = [self._sock.fileno(), pidfd]
                able, _, _ = select.select(ends, [], [], SAFETY_SECONDS)
                assert ends[0] in able, "the program ended" if able else "not ready in time"
                for line in self._sock.recv(_MESSAGE_BYTES).decode().splitlines():
                    name, _, value = line.partition("=")
                    fields[name] = value
        finally:
            os.close(pidfd)
        return fields
