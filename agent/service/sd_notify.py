"""What the service manager is told: ready, reloading, stopping, how it goes, and "not stuck".

The protocol is that of sd_notify(3): datagrams of lines to the socket that NOTIFY_SOCKET names.
Without one nobody is told anything. systemd's library is C and in no maintained package for Python;
the protocol is promised to stay as it is.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NoReturn, Self

from agent.errors import StartupError, VouchdError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, MutableMapping

# How often, at most, the line changes that `systemctl status` shows.
STATUS_SECONDS = 2.0
_MICROSECONDS = 1_000_000


class ServiceManager:
    """Owns the socket to the service manager: `close` it. A message that is lost is no error.

    Args:
        address: a path, or @ and an abstract name; None if nobody wants to be told.
        watchdog_seconds: for how long the manager stands silence; None for ever.

    Raises:
        StartupError: this is no address.
    """

    def __init__(self, address: str | None = None, watchdog_seconds: float | None = None) -> None:
        self.watchdog_seconds = watchdog_seconds
        self._socket: socket.socket | None = None
        if address:
            # Held from the start, so that there is one when descriptors run out.
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            try:
                self._socket.connect(f"\0{address[1:]}" if address[0] == "@" else address)
            except OSError as error:
                self._socket.close()
                raise StartupError(
                    f"NOTIFY_SOCKET={address} cannot be reached: {error.strerror or error}; "
                    "unset it if no service manager waits there"
                ) from error

    @classmethod
    def take(cls, environment: MutableMapping[str, str]) -> Self:
        """The one that started this process. Its variables are removed: children have none.

        Raises:
            StartupError: its address is none.
        """
        address, period, pid = (
            environment.pop(name, "") for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
        )
        is_watched = period.isdecimal() and pid in {"", str(os.getpid())}
        return cls(address, int(period) / _MICROSECONDS if is_watched else None)

    def tell(self, **fields: str | int) -> None:
        """Send one message, at once."""
        if self._socket is not None:
            lines = (f"{name}={_one_line(str(value))}\n" for name, value in fields.items())
            with suppress(OSError):
                self._socket.send("".join(lines).encode(errors="replace"))

    @contextmanager
    def reloading(self, status: Callable[[], str]) -> Iterator[None]:
        """Be reloading in this block, and ready after it, however it ends."""
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self.tell(RELOADING=1, MONOTONIC_USEC=now, STATUS="reloading")
        try:
            yield
        finally:
            self.tell(READY=1, STATUS=status())

    @contextmanager
    def told_of_failure(self) -> Iterator[None]:
        """Tell why, if this block ends with an error: `systemctl status` shows it."""
        try:
            yield
        except VouchdError as error:
            cause = error.__cause__
            number = {"ERRNO": cause.errno} if isinstance(cause, OSError) and cause.errno else {}
            self.tell(STATUS=f"failed: {error}", **number)
            raise

    async def feed_watchdog(self) -> None:
        """Say that the event loop turns, twice as often as has to be, if anybody listens."""
        while self.watchdog_seconds is not None:
            self.tell(WATCHDOG=1)
            await asyncio.sleep(self.watchdog_seconds / 2)

    async def follow(self, status: Callable[[], str]) -> NoReturn:
        """Tell what changes of the status line, for ever."""
        told = ""
        while True:
            await asyncio.sleep(STATUS_SECONDS)
            if (now := status()) != told:
                self.tell(STATUS=now)
                told = now

    def close(self) -> None:
        """Tell nothing any more."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _one_line(text: str) -> str:
    return " ".join(text.split("\n"))
