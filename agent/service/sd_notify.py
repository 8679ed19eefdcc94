"""Notifications to the service manager by sd_notify(3): ready, reloading, stopping, status, alive.

Each is a datagram of lines to the socket that NOTIFY_SOCKET names; without that variable nothing is
sent. systemd's library is C and in no maintained package for Python; the protocol is covered by
systemd's interface stability promise.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Self

from agent.errors import StartupError, VouchdError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, MutableMapping

# How often the status line is looked at.
STATUS_SECONDS = 2.0
# Half of the watchdog's period may be less; the loop has other work to do.
SHORTEST_FEED_SECONDS = 0.01
_MICROSECONDS = 1_000_000
# WATCHDOG_USEC of "infinity", as sd_watchdog_enabled(3) reads it.
_USEC_INFINITY = 2**64 - 1
_USEC_DIGITS = len(str(_USEC_INFINITY))


class ServiceManager:
    """Owns the socket to the service manager: `close` it. A lost message is no error.

    Args:
        address: a path, or @ and an abstract name; None without a service manager.
        watchdog_seconds: the longest silence that the watchdog allows; None without a watchdog.
        sleep: waits for so many seconds.

    Raises:
        StartupError: nothing listens at the address.
    """

    def __init__(
        self,
        address: str | None = None,
        watchdog_seconds: float | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.watchdog_seconds = watchdog_seconds
        self._sleep = sleep
        self._socket: socket.socket | None = None
        if address:
            # Held from the start: later there may be no descriptor left.
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
        """Connect to the manager that started this process, and remove its variables.

        Child processes must not notify in the name of the agent.

        Raises:
            StartupError: nothing listens at its address.
        """
        address, period, pid = (
            environment.pop(name, "") for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
        )
        is_watched = pid in {"", str(os.getpid())}
        return cls(address, _watchdog_seconds(period) if is_watched else None)

    def tell(self, **fields: str | int) -> None:
        """Send one message, at once."""
        if self._socket is not None:
            lines = (f"{name}={_one_line(str(value))}\n" for name, value in fields.items())
            with suppress(OSError):
                self._socket.send("".join(lines).encode(errors="replace"))

    @contextmanager
    def reloading(self, status: Callable[[], str]) -> Iterator[None]:
        """Send RELOADING before the block, and READY after it, even if it raises."""
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self.tell(RELOADING=1, MONOTONIC_USEC=now, STATUS="reloading")
        try:
            yield
        finally:
            self.tell(READY=1, STATUS=status())

    @contextmanager
    def told_of_failure(self) -> Iterator[None]:
        """Send the error that ends this block: `systemctl status` shows it."""
        try:
            yield
        except VouchdError as error:
            cause = error.__cause__
            number = {"ERRNO": cause.errno} if isinstance(cause, OSError) and cause.errno else {}
            self.tell(STATUS=f"failed: {error}", **number)
            raise

    async def feed_watchdog(self) -> None:
        """Send WATCHDOG twice in each period, from the event loop, until cancelled.

        Return at once without a watchdog.
        """
        while self.watchdog_seconds is not None:
            self.tell(WATCHDOG=1)
            await self._sleep(max(self.watchdog_seconds / 2, SHORTEST_FEED_SECONDS))

    async def follow(self, status: Callable[[], str]) -> None:
        """Send the status line whenever it has changed, until cancelled.

        Return at once without a service manager.
        """
        sent = ""
        while self._socket is not None:
            await self._sleep(STATUS_SECONDS)
            if (now := status()) != sent:
                self.tell(STATUS=now)
                sent = now

    def close(self) -> None:
        """Close the socket; later messages are dropped."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _watchdog_seconds(microseconds: str) -> float | None:
    """Return the period in WATCHDOG_USEC; None if it names none (sd_watchdog_enabled(3))."""
    if not microseconds.isdecimal() or len(microseconds) > _USEC_DIGITS:
        return None
    period = int(microseconds)
    return period / _MICROSECONDS if 0 < period < _USEC_INFINITY else None


def _one_line(text: str) -> str:
    return " ".join(text.split("\n"))
