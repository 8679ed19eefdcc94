"""A fast client: it sends prepared HTTP/2 frames and so takes little time itself.

It knows only what a bench needs: calls that get a message, on connections that do not fill up
(RFC 9113; gRPC over HTTP/2).
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import hpack

from tests.support.abuse import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PING,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    call_headers,
    frame,
)

ACK = 0x1
GOAWAY = 7
CANCEL = (8).to_bytes(4, "big")
SAFETY_SECONDS = 60.0
_TABLE_SIZE, _INITIAL_WINDOW = 1, 4
_WIDEST = 2**31 - 1
_FRAME_HEADER = 9
_MESSAGE_HEADER = 5
# No dynamic table: each header block is independent. Large windows: they never fill.
_HELLO = (
    PREFACE
    + frame(
        SETTINGS,
        payload=_TABLE_SIZE.to_bytes(2, "big")
        + bytes(4)
        + _INITIAL_WINDOW.to_bytes(2, "big")
        + _WIDEST.to_bytes(4, "big"),
    )
    + frame(WINDOW_UPDATE, payload=(_WIDEST - 65535).to_bytes(4, "big"))
)


class CallFailedError(Exception):
    """The server ended a call without a message, or closed the connection."""


@cache
def _headers(path: str) -> bytes:
    return call_headers(path=path)


@cache
def _check(trailers: bytes) -> None:
    """Raise CallFailedError unless the gRPC status is OK."""
    fields = {str(name): str(value) for name, value in hpack.Decoder().decode(trailers)}
    if fields.get("grpc-status") != "0":
        raise CallFailedError(f"status {fields.get('grpc-status')}: {fields.get('grpc-message')}")


@dataclass(frozen=True, slots=True)
class Request:
    """A call of a method (`/service/name`), ready to be sent.

    `streaming`: the server streams; the client cancels the call after the first message.
    """

    path: str
    message: bytes = b""
    streaming: bool = False

    def frames(self, stream: int) -> bytes:
        """Return the frames of the request."""
        body = bytes(1) + len(self.message).to_bytes(4, "big") + self.message
        return frame(HEADERS, END_HEADERS, stream, _headers(self.path)) + frame(
            DATA, END_STREAM, stream, body
        )


class Connection:
    """A client connection. Owns its socket: `close` it."""

    def __init__(self, path: str) -> None:
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._sock.connect(path)
        self._sock.settimeout(SAFETY_SECONDS)
        self._sock.sendall(_HELLO)
        self._arrived = b""
        self._bodies: dict[int, bytes] = {}
        self._next_stream = 1

    def fileno(self) -> int:
        """Return the socket's descriptor."""
        return self._sock.fileno()

    def close(self) -> None:
        """Close the connection."""
        self._sock.close()

    def call(self, request: Request) -> int:
        """Send a request and return its stream ID."""
        stream = self._next_stream
        self._next_stream += 2
        self._bodies[stream] = b""
        self._sock.sendall(request.frames(stream))
        return stream

    def take_back(self, stream: int) -> None:
        """Cancel a call."""
        self._bodies.pop(stream, None)
        self._sock.sendall(frame(RST_STREAM, 0, stream, CANCEL))

    def fetch(self, request: Request) -> bytes:
        """Call, and wait for the message.

        Raises:
            CallFailedError: there is none.
        """
        stream = self.call(request)
        while True:
            for _stream, message in self.read():
                self.done(request, stream)
                return message

    def done(self, request: Request, stream: int) -> None:
        """Cancel a streaming call after its message."""
        if request.streaming:
            self.take_back(stream)
        else:
            self._bodies.pop(stream, None)

    def read(self) -> list[tuple[int, bytes]]:
        """Receive once; return the messages with their stream IDs.

        Raises:
            CallFailedError: see there.
        """
        data = self._sock.recv(1 << 16)
        if not data:
            raise CallFailedError("the server closed the connection")
        self._arrived += data
        messages = []
        for kind, flags, stream, payload in self._frames():
            if kind == DATA and stream in self._bodies:
                messages += [(stream, message) for message in self._messages(stream, payload)]
            elif kind == HEADERS and flags & END_STREAM and stream in self._bodies:
                _check(payload)
            elif kind == GOAWAY:
                raise CallFailedError(f"the server sent GOAWAY: {payload!r}")
            elif kind in {PING, SETTINGS} and not flags & ACK:
                self._sock.sendall(frame(kind, ACK, 0, payload if kind == PING else b""))
        return messages

    def _frames(self) -> Iterator[tuple[int, int, int, bytes]]:
        data, start = self._arrived, 0
        while len(data) >= start + _FRAME_HEADER:
            begin = start + _FRAME_HEADER
            end = begin + int.from_bytes(data[start : start + 3], "big")
            if len(data) < end:
                break
            stream = int.from_bytes(data[start + 5 : begin], "big")
            yield data[start + 3], data[start + 4], stream, data[begin:end]
            start = end
        self._arrived = data[start:]

    def _messages(self, stream: int, payload: bytes) -> Iterator[bytes]:
        body = self._bodies[stream] + payload
        while len(body) >= _MESSAGE_HEADER:
            end = _MESSAGE_HEADER + int.from_bytes(body[1:_MESSAGE_HEADER], "big")
            if len(body) < end:
                break
            yield body[_MESSAGE_HEADER:end]
            body = body[end:]
        self._bodies[stream] = body


class Crowd:
    """Connections that share one poll(2) object. Owns the connections: `close` it."""

    def __init__(self) -> None:
        self._connections: dict[int, Connection] = {}
        self._poll = select.epoll()

    def __len__(self) -> int:
        """Return the number of connections."""
        return len(self._connections)

    def connect(self, path: str) -> Connection:
        """Open a connection and return it."""
        connection = Connection(path)
        self._connections[connection.fileno()] = connection
        self._poll.register(connection, select.EPOLLIN)
        return connection

    def close(self) -> None:
        """Close all connections."""
        self._poll.close()
        for connection in self._connections.values():
            connection.close()

    def connections(self) -> Sequence[Connection]:
        """Return all connections."""
        return tuple(self._connections.values())

    def gather(
        self,
        count: int,
        note: Callable[[Connection, int, float], object] | None = None,
        patience: float | None = SAFETY_SECONDS,
    ) -> float:
        """Wait for `count` messages; pass the time of each to `note` and return the last.

        `patience`: the time-out between two messages in seconds; None is no time-out.

        Raises:
            CallFailedError: a call has failed, or nothing comes any more.
        """
        last = time.perf_counter()
        while count > 0:
            ready = self._poll.poll(patience)
            if not ready:
                raise CallFailedError(f"{count} messages are missing")
            for descriptor, _events in ready:
                connection = self._connections[descriptor]
                for stream, _message in connection.read():
                    last = time.perf_counter()
                    count -= 1
                    if note is not None:
                        note(connection, stream, last)
        return last

    def quiet(self, seconds: float) -> int:
        """Read until no message has arrived for `seconds`; return the number before."""
        messages = 0
        while ready := self._poll.poll(seconds):
            for descriptor, _events in ready:
                messages += len(self._connections[descriptor].read())
        return messages


@contextmanager
def connected(path: str) -> Iterator[Connection]:
    """Yield a connection; close it after the block."""
    connection = Connection(path)
    try:
        yield connection
    finally:
        connection.close()


@contextmanager
def crowd(path: str = "", size: int = 0) -> Iterator[Crowd]:
    """Yield a Crowd with `count` connections; close it after the block."""
    made = Crowd()
    try:
        for _ in range(size):
            made.connect(path)
        yield made
    finally:
        made.close()
