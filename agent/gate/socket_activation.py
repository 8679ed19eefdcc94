"""Take the listening sockets that the service manager passes at start (sd_listen_fds(3)).

The service manager keeps them open when the agent ends: connections then wait in the kernel's queue
for the next agent. The socket unit sets their paths, owners and modes, and removes their files.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from agent.errors import StartupError

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping
    from contextlib import ExitStack

# SD_LISTEN_FDS_START
FIRST = 3
_VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")


class ActivatedListener:
    """A checked listening socket for `path`. It owns the descriptor, not the file.

    Raises:
        StartupError: the socket is no listening Unix stream socket, is bound to another path, or
            does not name the senders of its bytes.
    """

    def __init__(self, sock: socket.socket, name: str, path: Path) -> None:
        self.socket = sock
        _require_listening(sock, name)
        _require_path(sock, name, path)
        # The kernel adds no credentials to bytes that came before SO_PASSCRED
        # (agent.kernel.sender).
        if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED):
            raise StartupError(
                f"the socket {name!r} has no SO_PASSCRED, so its bytes do not name their sender; "
                "add PassCredentials=yes to the [Socket] section of its unit, and restart that unit"
            )
        sock.settimeout(0)

    def close(self) -> None:
        """Close the descriptor; the service manager still listens."""
        self.socket.close()


def take_sockets(
    environment: MutableMapping[str, str],
    wanted: Mapping[str, Path | None],
    held: ExitStack,
    first: int = FIRST,
) -> dict[str, ActivatedListener]:
    """Take the passed sockets, by name, and remove the variables so that children do not see them.

    Args:
        environment: has the variables of the service manager.
        wanted: the allowed names, and the path that each must be bound to; None for a socket that
            the settings do not have.
        held: closes the sockets at the end.
        first: the number of the first passed descriptor.

    Raises:
        StartupError: a socket is not wanted, or not as required.
    """
    pid, count, names = (environment.pop(name, "") for name in _VARIABLES)
    if pid != str(os.getpid()) or not count.isdecimal():
        return {}
    passed = [_adopt(first + number, held) for number in range(int(count))]
    found: dict[str, ActivatedListener] = {}
    for sock, name in zip(passed, names.split(":"), strict=False):
        if name not in wanted or name in found:
            raise StartupError(
                f"a socket named {name!r} was passed, and one each of {', '.join(wanted)} is "
                "expected; set FileDescriptorName= in the socket unit"
            )
        if (path := wanted[name]) is None:
            raise StartupError(
                f"a socket named {name!r} was passed, and the configuration has none; "
                f"set {name}_socket_path, or disable the socket unit"
            )
        found[name] = ActivatedListener(sock, name, path)
    return found


def _adopt(descriptor: int, held: ExitStack) -> socket.socket:
    try:
        sock = socket.socket(fileno=descriptor)
    except OSError as error:
        raise StartupError(
            f"the passed descriptor {descriptor} is no socket ({error.strerror}); "
            "pass the service only the descriptors of its socket units"
        ) from error
    held.callback(sock.close)
    sock.set_inheritable(False)
    return sock


def _require_listening(sock: socket.socket, name: str) -> None:
    is_stream = (sock.family, sock.type) == (socket.AF_UNIX, socket.SOCK_STREAM)
    if not is_stream or not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise StartupError(
            f"the socket {name!r} is no listening Unix stream socket; "
            "its unit must have a path in ListenStream=, and Accept=no"
        )


def _require_path(sock: socket.socket, name: str, path: Path) -> None:
    bound = sock.getsockname()
    # An abstract name is bytes, and has no file.
    if not isinstance(bound, str) or not bound or Path(bound).resolve() != path.resolve():
        raise StartupError(
            f"the socket {name!r} is bound to {bound!r}, and the configuration says {path}; "
            "make ListenStream= of its unit and the configuration the same"
        )
