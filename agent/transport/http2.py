"""HTTP/2 frames that pass through (RFC 9113): insert frames, take out answers, count calls.

The module changes the stream in two ways only: it inserts a frame towards the client, and removes
the answer to it. All other bytes, valid or not, pass in their order. It holds back only the
beginning of a frame until its header, or its PING, is complete. It refuses what the server would
have to keep in memory: a header block without end, and a request that is too large. It counts the
open calls.
"""

from __future__ import annotations

import math
import struct
from typing import TypeAlias

from agent.errors import PeerError

# RFC 9113 section 3.4: the connection preface of a client.
CLIENT_PREFACE_BYTES = 24
# Sections 4.1 and 6.7.
_HEADER = struct.Struct(">HBBBI")  # the length has 24 bits
HEADER_BYTES = 9
PAYLOAD_BYTES = 8
PING_BYTES = HEADER_BYTES + PAYLOAD_BYTES
# The limit of the server, with the headers of the frames. A workload's call has some 200 bytes.
MAX_HEADER_BLOCK_BYTES = 16 * 1024

# The prefix of a gRPC message. The server begins with a call when it has one.
MESSAGE_HEADER_BYTES = 5

_DATA, _HEADERS, _RST_STREAM, _PUSH_PROMISE, _PING, _GOAWAY, _CONTINUATION = 0, 1, 3, 5, 6, 7, 9
_MAY_END_STREAM = frozenset({_DATA, _HEADERS})
_ACK, _END_STREAM, _END_HEADERS = 0x1, 0x1, 0x4
_OF_HEADER_BLOCKS = frozenset({_HEADERS, _PUSH_PROMISE, _CONTINUATION})
_PING_HEADER = bytes([0, 0, PAYLOAD_BYTES, _PING, 0, 0, 0, 0, 0])
_HIGHEST_STREAM = (1 << 31) - 1
GO_AWAY = bytes([0, 0, 8, _GOAWAY, 0, 0, 0, 0, 0]) + _HIGHEST_STREAM.to_bytes(4, "big") + bytes(4)
"""A GOAWAY frame: the client makes its next calls on another connection (section 6.8).

The last stream is the highest number, so that calls on their way are still served.
"""


def ping(payload: bytes) -> bytes:
    """Make a PING frame. The other side must send the same eight bytes back (section 6.7).

    Raises:
        ValueError: the payload does not have eight bytes.
    """
    if len(payload) != PAYLOAD_BYTES:
        raise ValueError(f"a PING carries {PAYLOAD_BYTES} bytes, not {len(payload)}")
    return _PING_HEADER + payload


Header: TypeAlias = tuple[int, int, int, int, int]
"""A frame's offset in its chunk, and its header: kind, flags, stream, length.

A plain tuple, because each frame of each call has one.
"""


class _Cutter:
    """Finds the beginnings of frames in a stream that arrives in chunks of any size."""

    def __init__(self, preface_bytes: int) -> None:
        self._ahead = preface_bytes
        """The number of coming bytes that belong to the present frame."""
        self._held = b""

    @property
    def between_frames(self) -> bool:
        """Whether the bytes returned so far end with the end of a frame."""
        return self._ahead == 0

    def cut(self, chunk: bytes) -> tuple[bytes, list[Header]]:
        """Return the bytes that may pass now, and the frames that begin in them.

        A frame's header is never cut in two, nor is a PING.
        """
        data = self._held + chunk if self._held else chunk
        headers = []
        at, end = self._ahead, len(data)
        while at + HEADER_BYTES <= end:
            high, low, kind, flags, stream = _HEADER.unpack_from(data, at)
            length = high << 8 | low
            if kind == _PING and length == PAYLOAD_BYTES and at + PING_BYTES > end:
                break
            # The first bit of the stream is reserved and must be ignored (section 4.1).
            headers.append((at, kind, flags, stream & _HIGHEST_STREAM, length))
            at += HEADER_BYTES + length
        if at >= end:
            self._ahead, self._held = at - end, b""
            return data, headers
        self._ahead, self._held = 0, data[at:]
        return data[:at], headers


class RequestSizeError(PeerError):
    """A call is too large."""


class Calls:
    """The open calls of one connection, by the frames that pass (section 5.1).

    In each of them the client may send `most_bytes`.
    """

    def __init__(self, most_bytes: float = math.inf) -> None:
        self._most_bytes = most_bytes
        self.open: dict[int, int] = {}
        """Calls that neither side has ended, with the number of bytes that the client has sent."""
        self.unanswered: set[int] = set()
        """Open calls without a first response."""
        self._last = 0

    def from_client(self, kind: int, flags: int, stream: int, length: int) -> bool:
        """Note that a frame of the client begins to pass.

        Returns:
            Whether the end of this frame lets the server begin with the call; once for each call.

        Raises:
            RequestSizeError: with this frame the call is too large.
        """
        if kind == _RST_STREAM:
            self._end(stream)
        if kind not in _MAY_END_STREAM:
            return False
        if kind == _HEADERS and stream > self._last:
            # Each call has a higher number than the last (section 5.1.1). Other HEADERS are
            # trailers.
            self._last = stream
            self.open[stream] = 0
            self.unanswered.add(stream)
        if (before := self.open.get(stream)) is None:
            return False
        sent = before + length if kind == _DATA else before
        if sent > self._most_bytes:
            raise RequestSizeError(f"a call of more than {self._most_bytes} bytes")
        self.open[stream] = sent
        has_message = sent >= MESSAGE_HEADER_BYTES or bool(flags & _END_STREAM)
        return has_message and before < MESSAGE_HEADER_BYTES

    def from_server(self, kind: int, flags: int, stream: int) -> None:
        """Note that a frame of the server begins to pass."""
        if kind == _RST_STREAM or (flags & _END_STREAM and kind in _MAY_END_STREAM):
            self._end(stream)
        elif kind == _DATA:
            self.unanswered.discard(stream)

    def _end(self, stream: int) -> None:
        self.open.pop(stream, None)
        self.unanswered.discard(stream)


class HeaderBlockError(PeerError):
    """A header block is too large."""


class ClientFrames:
    """Client to server: removes the answers to the agent's own PINGs, and no other frame.

    `requests` counts the header blocks: each begins a request (or is a trailer, which gRPC clients
    do not send). `complete` counts the requests with which the server can begin.
    """

    def __init__(self, calls: Calls | None = None) -> None:
        self.requests = 0
        self.complete = 0
        self._last_is_passing = False
        self._calls = calls or Calls()
        self._cutter = _Cutter(CLIENT_PREFACE_BYTES)
        self._block_bytes = 0
        self._awaited: set[bytes] = set()
        self._answered: list[bytes] = []

    def expect(self, payload: bytes) -> None:
        """Remove the answer with this payload when it comes."""
        self._awaited.add(payload)

    def forget(self, payload: bytes) -> None:
        """Stop expecting it."""
        self._awaited.discard(payload)

    def answered(self) -> list[bytes]:
        """Return the payloads that were answered since the last call."""
        answered, self._answered = self._answered, []
        return answered

    def feed(self, chunk: bytes) -> bytes:
        """Return the bytes that pass to the server.

        Raises:
            HeaderBlockError: a header block is too large.
            RequestSizeError: a call is too large.
        """
        data, headers = self._cutter.cut(chunk)
        for _at, kind, flags, stream, length in headers:
            if self._last_is_passing:
                self.complete += 1
            if kind in _OF_HEADER_BLOCKS:
                self._count_header_bytes(kind, length)
            self._last_is_passing = self._calls.from_client(kind, flags, stream, length)
        if self._last_is_passing and self._cutter.between_frames:
            self.complete += 1
            self._last_is_passing = False
        return self._without_answers(data, headers) if self._awaited else data

    def _without_answers(self, data: bytes, headers: list[Header]) -> bytes:
        kept, start = [], 0
        for at, kind, flags, _stream, length in headers:
            if kind != _PING or length != PAYLOAD_BYTES or not flags & _ACK:
                continue
            payload = data[at + HEADER_BYTES : at + PING_BYTES]
            if payload in self._awaited:
                self._awaited.discard(payload)
                self._answered.append(payload)
                kept.append(data[start:at])
                start = at + PING_BYTES
        return b"".join([*kept, data[start:]])

    def _count_header_bytes(self, kind: int, length: int) -> None:
        if kind == _HEADERS:
            self.requests += 1
            self._block_bytes = 0
        elif kind != _CONTINUATION:
            return
        # The headers of the frames count, which bounds the number of empty frames too.
        self._block_bytes += HEADER_BYTES + length
        if self._block_bytes > MAX_HEADER_BLOCK_BYTES:
            raise HeaderBlockError(f"headers of more than {MAX_HEADER_BLOCK_BYTES} bytes")


class Insertion:
    """Server to client: inserts the agent's frames between others, where the standard allows it."""

    def __init__(self, calls: Calls | None = None) -> None:
        self._calls = calls or Calls()
        self._cutter = _Cutter(0)
        self._waiting: list[bytes] = []
        # The server's first frame must be SETTINGS (section 3.4), and no frame may come between
        # those of one header block (section 4.3).
        self._open = False

    def insert(self, frame: bytes) -> bytes:
        """Return the bytes to send now; none if the frame must wait for the end of another."""
        self._waiting.append(frame)
        return self._release() if self._cutter.between_frames else b""

    def feed(self, chunk: bytes) -> bytes:
        """Return the stream with the waiting frames inserted."""
        data, headers = self._cutter.cut(chunk)
        parts, start = [], 0
        for at, kind, flags, stream, _length in headers:
            self._calls.from_server(kind, flags, stream)
            if self._waiting:
                parts += [data[start:at], self._release()]
                start = at
            self._open = kind not in _OF_HEADER_BLOCKS or bool(flags & _END_HEADERS)
        if not parts and not self._waiting:
            return data
        parts.append(data[start:])
        if self._waiting and self._cutter.between_frames:
            parts.append(self._release())
        return b"".join(parts)

    def _release(self) -> bytes:
        if not self._open:
            return b""
        released = b"".join(self._waiting)
        self._waiting.clear()
        return released
