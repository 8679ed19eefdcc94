"""The native protocol of journald: an event is a datagram of fields (systemd.journal-fields(7)).

journald adds the trusted fields itself: the process, the unit, the boot.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from array import array
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

JOURNAL_SOCKET = "/run/systemd/journal/socket"

# The kernel refused the datagram as too large: its content goes in a sealed memfd instead.
_TOO_LARGE = frozenset({errno.EMSGSIZE, errno.ENOBUFS})
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


def leads_to_journal(descriptor: int, stream: str | None) -> bool:
    """Return whether a descriptor is the stream that JOURNAL_STREAM names (systemd.exec(5)).

    The variable alone proves nothing: a child process with a redirected stderr inherits it.
    """
    try:
        status = os.fstat(descriptor)
    except OSError:
        return False
    return stream == f"{status.st_dev}:{status.st_ino}"


def encode(fields: Mapping[str, str]) -> bytes:
    """Encode one event. Surrogates, which stand for undecodable bytes, are escaped."""
    return b"".join(
        _field(name.encode(), value.encode(errors="backslashreplace"))
        for name, value in fields.items()
    )


def _field(name: bytes, value: bytes) -> bytes:
    if b"\n" in value:
        return b"%b\n%b%b\n" % (name, len(value).to_bytes(8, "little"), value)
    return b"%b=%b\n" % (name, value)


class Journal:
    """A sender of events to journald. It owns a socket.

    The address is resolved for every event, so that a restarted journald is found again.
    """

    def __init__(self, path: str = JOURNAL_SOCKET) -> None:
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)

    def send(self, fields: Mapping[str, str]) -> None:
        """Send one event; block while the receive queue of journald is full.

        Raises:
            OSError: journald is not reachable.
        """
        datagram = encode(fields)
        try:
            self._socket.sendto(datagram, self._path)
        except OSError as error:
            if error.errno not in _TOO_LARGE:
                raise
            self._send_as_file(datagram)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def _send_as_file(self, content: bytes) -> None:
        descriptor = os.memfd_create("journal-event", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            fcntl.fcntl(file, fcntl.F_ADD_SEALS, _SEALS)
            passed = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [descriptor]))]
            self._socket.sendmsg([], passed, 0, self._path)
