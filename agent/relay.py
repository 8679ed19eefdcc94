"""Two sockets, tied together: bytes, half-closes and errors pass from each to the other.

Memory is bounded: each direction holds at most one chunk, and reads no further until that chunk is
written, so that a peer which stops reading stops the other side too.

The relay owns both sockets and closes them. It knows nothing of who is calling.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

# Linux hands a stream socket's bytes out in buffers of up to 32 KiB payload; two fit.
CHUNK_BYTES = 64 * 1024


class Relay:
    """Relays between two connected, non-blocking stream sockets until both have finished.

    `on_close` is called exactly once, after both sockets were closed, with a word why.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        left: socket.socket,
        right: socket.socket,
        on_close: Callable[[str], None],
    ) -> None:
        self._sockets = (left, right)
        self._on_close = on_close
        self._closed = False
        self.outbound = _Flow(loop, left, right, self._flow_ended)
        self.inbound = _Flow(loop, right, left, self._flow_ended)

    def start(self) -> None:
        """Begin to relay."""
        self.outbound.start()
        self.inbound.start()

    def close(self, reason: str) -> None:
        """Cut both sides at once; again is harmless."""
        if self._closed:
            return
        self._closed = True
        self.outbound.stop()
        self.inbound.stop()
        for sock in self._sockets:
            sock.close()
        self._on_close(reason)

    def _flow_ended(self, error: OSError | None) -> None:
        if error is not None:
            self.close(f"reset ({error.strerror})")
        elif self.outbound.ended and self.inbound.ended:
            self.close("closed")


class _Flow:
    """One direction: reads from `source`, writes to `target`, passes the end on as a half-close."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        source: socket.socket,
        target: socket.socket,
        on_end: Callable[[OSError | None], None],
    ) -> None:
        self._loop = loop
        self._source = source
        self._target = target
        self._on_end = on_end
        self._pending = memoryview(b"")
        self.bytes = 0
        self.ended = False

    def start(self) -> None:
        self._loop.add_reader(self._source, self._on_readable)

    def stop(self) -> None:
        self._loop.remove_reader(self._source)
        self._loop.remove_writer(self._target)
        self.ended = True

    def _on_readable(self) -> None:
        try:
            chunk = self._source.recv(CHUNK_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._end(error)
            return
        if not chunk:
            self._end(None)
            return
        self.bytes += len(chunk)
        self._pending = memoryview(chunk)
        if self._write() and self._pending:
            self._loop.remove_reader(self._source)
            self._loop.add_writer(self._target, self._on_writable)

    def _on_writable(self) -> None:
        if self._write() and not self._pending:
            self._loop.remove_writer(self._target)
            self._loop.add_reader(self._source, self._on_readable)

    def _write(self) -> bool:
        """Write what is pending; False if that ended the flow."""
        try:
            sent = self._target.send(self._pending, socket.MSG_NOSIGNAL)
        except (BlockingIOError, InterruptedError):
            return True
        except OSError as error:
            self._end(error)
            return False
        self._pending = self._pending[sent:]
        return True

    def _end(self, error: OSError | None) -> None:
        self.stop()
        if error is None:
            try:
                self._target.shutdown(socket.SHUT_WR)
            except OSError as shutdown_error:
                error = shutdown_error
        self._on_end(error)
