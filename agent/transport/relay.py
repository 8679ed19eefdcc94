"""Relay between two sockets: pass bytes, half-closes and errors from each to the other.

Memory is bounded: each direction holds at most one chunk, and reads on when the chunk is written. A
peer that stops reading stops the other side too.

The relay owns both sockets and closes them. It does not know the caller: its owner supplies the
function that reads a chunk and returns the part that passes.
"""

from __future__ import annotations

import fcntl
import socket
import sys
import termios
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.errors import PeerError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

# Linux stores the bytes of a stream socket in buffers of up to 32 KiB. Two of them fit.
CHUNK_BYTES = 64 * 1024


def unread_bytes(sock: socket.socket) -> int:
    """Return the number of bytes to read (unix(7), SIOCINQ); 0 also at the end of the stream."""
    return int.from_bytes(fcntl.ioctl(sock, termios.FIONREAD, bytes(4)), sys.byteorder)


def always(_resume: Callable[[], None]) -> bool:
    """Let a side read without waiting."""
    return True


@dataclass(slots=True)
class Side:
    """One of the two sockets, and how it is read.

    `read` returns the bytes that pass to the other side, which may be none, and None at the end of
    the stream. It may raise OSError, and PeerError for bytes that must not pass: both end the
    relay. `may_read` returns whether to read now; if not, it calls its argument later.
    """

    sock: socket.socket
    read: Callable[[], bytes | None]
    may_read: Callable[[Callable[[], None]], bool] = always


class Relay:
    """Relays between two connected, non-blocking stream sockets until both have finished.

    `on_close` is called exactly once, after both sockets were closed, with the reason: a text, or
    the PeerError of a `read`.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        left: Side,
        right: Side,
        on_close: Callable[[str | PeerError], None],
    ) -> None:
        self._sockets = (left.sock, right.sock)
        self._on_close = on_close
        self._closed = False
        self.outbound = _Flow(loop, left, right.sock, self._flow_ended)
        self.inbound = _Flow(loop, right, left.sock, self._flow_ended)

    def start(self) -> None:
        """Start to relay."""
        self.outbound.start()
        self.inbound.start()

    def close(self, reason: str | PeerError) -> None:
        """Close both sockets at once. A second call has no effect."""
        if self._closed:
            return
        self._closed = True
        self.outbound.stop()
        self.inbound.stop()
        for sock in self._sockets:
            sock.close()
        self._on_close(reason)

    def _flow_ended(self, error: OSError | PeerError | None) -> None:
        match error:
            case PeerError():
                self.close(error)
            case OSError():
                self.close(f"reset ({error.strerror})")
            case None if self.outbound.ended and self.inbound.ended:
                self.close("closed")


class _Flow:
    """One direction: reads from `source`, writes to `target`, passes the end on as a half-close."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        source: Side,
        target: socket.socket,
        on_end: Callable[[OSError | PeerError | None], None],
    ) -> None:
        self._loop = loop
        self._source = source.sock
        self._take = source.read
        self._may_read = source.may_read
        self._target = target
        self._on_end = on_end
        self._pending = memoryview(b"")
        self.bytes = 0
        self.waiting = False
        self.ended = False

    def start(self) -> None:
        self._loop.add_reader(self._source, self._on_readable)

    def stop(self) -> None:
        self._loop.remove_reader(self._source)
        self._loop.remove_writer(self._target)
        self.ended = True

    def send(self, data: bytes) -> None:
        """Send other bytes, behind those that are on their way."""
        if self.ended:
            return
        if self._pending:
            self._pending = memoryview(bytes(self._pending) + data)
        else:
            self._pass_on(data)

    def _on_readable(self) -> None:
        if self._may_read(self._resume):
            self._read()
        else:
            self.waiting = True
            self._loop.remove_reader(self._source)

    def _resume(self) -> None:
        self.waiting = False
        if not self.ended:
            self._loop.add_reader(self._source, self._on_readable)
            self._read()

    def _read(self) -> None:
        try:
            passing = self._take()
        except (BlockingIOError, InterruptedError):
            return
        except (OSError, PeerError) as error:
            self._end(error)
            return
        if passing is None:
            self._end(None)
        elif passing:
            self.bytes += len(passing)
            self._pass_on(passing)

    def _pass_on(self, data: bytes) -> None:
        sent = self._write(data)
        if sent < len(data) and not self.ended:
            self._pending = memoryview(data)[sent:]
            self._loop.remove_reader(self._source)
            self._loop.add_writer(self._target, self._on_writable)

    def _on_writable(self) -> None:
        self._pending = self._pending[self._write(self._pending) :]
        if not self._pending and not self.ended:
            self._loop.remove_writer(self._target)
            self._loop.add_reader(self._source, self._on_readable)

    def _write(self, data: bytes | memoryview) -> int:
        """Write as much as the socket takes, and return its length. An error ends the flow."""
        try:
            return self._target.send(data, socket.MSG_NOSIGNAL)
        except (BlockingIOError, InterruptedError):
            pass
        except OSError as error:
            self._end(error)
        return 0

    def _end(self, error: OSError | PeerError | None) -> None:
        self.stop()
        if error is None:
            try:
                self._target.shutdown(socket.SHUT_WR)
            except OSError as shutdown_error:
                error = shutdown_error
        self._on_end(error)
