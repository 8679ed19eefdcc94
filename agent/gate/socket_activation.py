"""Sockets that the service manager passes at start (sd_listen_fds(3)).

They stay when the agent ends: who connects meanwhile waits in the kernel's queue for the next one.
Their paths, owners and modes are the socket unit's affair; their files are never removed here.
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

_FIRST = 3
_VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")


class ActivatedListener:
    """A listening socket that was passed for `path`, checked. It owns the descriptor, not the file.

    Raises:
        StartupError: the socket is of another kind or place, or could not be trusted.
    """

    def __init__(self, sock: socket.socket, name: str, path: Path) -> None:
        self.socket = sock
        _require_listening(sock, name)
        _require_path(sock, name, path)
        # Bytes that arrived before now must have been stamped too (agent.kernel.sender).
        if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED):
            raise StartupError(
                f"the socket {name!r} does not tell who sent its bytes; "
                "add PassCredentials=yes to the [Socket] section of its unit, and restart that unit"
            )
        sock.settimeout(0)

    def close(self) -> None:
        """Give up the descriptor; the service manager still listens."""
        self.socket.close()


def take_sockets(
    environment: MutableMapping[str, str], wanted: Mapping[str, Path | None], held: ExitStack
) -> dict[str, ActivatedListener]:
    """The sockets that were passed, by name. The variables are removed: children have none.

    Args:
        environment: where the service manager says what it passed.
        wanted: the names that there may be, and the path that each must be bound to; None where
            the settings want no such socket.
        held: closes the sockets in the end.

    Raises:
        StartupError: one of them is not wanted, or not as it has to be.
    """
    pid, count, names = (environment.pop(name, "") for name in _VARIABLES)
    if pid != str(os.getpid()) or not count.isdecimal():
        return {}
    passed = [_adopt(_FIRST + number, held) for number in range(int(count))]
    found: dict[str, ActivatedListener] = {}
    for sock, name in zip(passed, names.split(":"), strict=False):
        if name not in wanted or name in found:
            raise StartupError(
                f"a socket named {name!r} was passed where one each of {', '.join(wanted)} is "
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
            f"the descriptor {descriptor} that was passed is no socket ({error.strerror}); "
            "give the service no other than those of its socket units"
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
    # An abstract name has no file that could be the configured one.
    if not isinstance(bound, str) or not bound or Path(bound).resolve() != path.resolve():
        raise StartupError(
            f"the socket {name!r} is bound to {bound!r}, and the configuration says {path}; "
            "make ListenStream= of its unit and the configuration the same"
        )
