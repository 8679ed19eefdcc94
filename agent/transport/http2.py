"""HTTP/2 frames as they pass by (RFC 9113): where one may be put in, and which answer is ours.

Nothing is changed but that: a frame more towards the client, and one less towards the server.
Whatever the bytes are, valid or not, all others pass in their order; only the beginning of a frame
that is still incomplete is held back until the rest of it has come. What does not pass
is what the server would have to keep in memory: a header block without end, and a request that is
too large. On the way it is noted which calls are under way.
"""

from __future__ import annotations

import math
import struct
from typing import TypeAlias

from agent.errors import PeerError

# RFC 9113 section 3.4: what a client sends before its first frame.
CLIENT_PREFACE_BYTES = 24
# Sections 4.1 and 6.7.
_HEADER = struct.Struct(">HBBBI")  # the length has 24 bits
HEADER_BYTES = 9
PAYLOAD_BYTES = 8
PING_BYTES = HEADER_BYTES + PAYLOAD_BYTES
# As much as the server takes in the end, with the headers of the frames: a call of a workload has
# some 200 bytes.
MAX_HEADER_BLOCK_BYTES = 16 * 1024

# What gRPC has before each message. Its server begins with a call when it has one.
MESSAGE_HEADER_BYTES = 5

_DATA, _HEADERS, _RST_STREAM, _PUSH_PROMISE, _PING, _GOAWAY, _CONTINUATION = 0, 1, 3, 5, 6, 7, 9
_MAY_END_STREAM = frozenset({_DATA, _HEADERS})
_ACK, _END_STREAM, _END_HEADERS = 0x1, 0x1, 0x4
_OF_HEADER_BLOCKS = frozenset({_HEADERS, _PUSH_PROMISE, _CONTINUATION})
_PING_HEADER = bytes([0, 0, PAYLOAD_BYTES, _PING, 0, 0, 0, 0, 0])
_HIGHEST_STREAM = (1 << 31) - 1
GO_AWAY = bytes([0, 0, 8, _GOAWAY, 0, 0, 0, 0, 0]) + _HIGHEST_STREAM.to_bytes(4, "big") + bytes(4)
"""Tells a client to make its next calls on another connection; those under way go on (section 6.8).

No call is said to be too late for this one, because some may be on their way.
"""


def ping(payload: bytes) -> bytes:
    """A PING frame. The other side must send the same eight bytes back (section 6.7).

    Raises:
        ValueError: the payload has not eight bytes.
    """
    if len(payload) != PAYLOAD_BYTES:
        raise ValueError(f"a PING carries {PAYLOAD_BYTES} bytes, not {len(payload)}")
    return _PING_HEADER + payload


Header: TypeAlias = tuple[int, int, int, int, int]
"""Where a frame begins in the bytes that it is in, and what it says: kind, flags, stream, length.

A plain tuple, because there is one for each frame of each call.
"""


class _Cutter:
    """Finds where frames begin in a stream that arrives in any pieces."""

    def __init__(self, preface_bytes: int) -> None:
        self._ahead = preface_bytes
        """How many bytes of what comes next belong to what has begun already."""
        self._held = b""

    @property
    def between_frames(self) -> bool:
        """Whether all that was handed out so far ends with the end of a frame."""
        return self._ahead == 0

    def cut(self, chunk: bytes) -> tuple[bytes, list[Header]]:
        """The bytes that may pass now, and the frames that begin in them.

        A header is never cut in two, nor is a PING.
        """
        data = self._held + chunk if self._held else chunk
        headers = []
        at, end = self._ahead, len(data)
        while at + HEADER_BYTES <= end:
            high, low, kind, flags, stream = _HEADER.unpack_from(data, at)
            length = high << 8 | low
            if kind == _PING and length == PAYLOAD_BYTES and at + PING_BYTES > end:
                break
            # The first bit of the stream is reserved, and to be ignored (section 4.1).
            headers.append((at, kind, flags, stream & _HIGHEST_STREAM, length))
            at += HEADER_BYTES + length
        if at >= end:
            self._ahead, self._held = at - end, b""
            return data, headers
        self._ahead, self._held = 0, data[at:]
        return data[:at], headers


class RequestSizeError(PeerError):
    """A client sends too much in one call."""


class Calls:
    """The calls of one connection that are under way, by the frames that pass (section 5.1).

    In each of them the client may send `most_bytes`.
    """

    def __init__(self, most_bytes: float = math.inf) -> None:
        self._most_bytes = most_bytes
        self.open: dict[int, int] = {}
        """Those that the server has not ended, nor the client given up; how much that has sent."""
        self.unanswered: set[int] = set()
        """Those of them that have had no response yet, not even the first of many."""
        self._last = 0

    def from_client(self, kind: int, flags: int, stream: int, length: int) -> bool:
        """Such a frame of the client's begins to pass.

        Returns:
            Whether with its end the server has something to begin with: once for each call.

        Raises:
            RequestSizeError: with it the client has sent too much in one call.
        """
        if kind == _RST_STREAM:
            self._end(stream)
        if kind not in _MAY_END_STREAM:
            return False
        if kind == _HEADERS and stream > self._last:
            # Each call has a higher number than the last (section 5.1.1); others are trailers.
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
        """Such a frame of the server's begins to pass."""
        if kind == _RST_STREAM or (flags & _END_STREAM and kind in _MAY_END_STREAM):
            self._end(stream)
        elif kind == _DATA:
            self.unanswered.discard(stream)

    def _end(self, stream: int) -> None:
        self.open.pop(stream, None)
        self.unanswered.discard(stream)


class HeaderBlockError(PeerError):
    """A client sends headers without end."""


class ClientFrames:
    """Client to server: takes out the answers to our own PINGs, and those only.

    `requests` is how many header blocks have begun: each is a request, or one of the trailers that
    no client of ours sends. `complete` is with how many of them the server can begin.
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
        """Take out the answer with this payload when it comes."""
        self._awaited.add(payload)

    def forget(self, payload: bytes) -> None:
        """Expect it no more."""
        self._awaited.discard(payload)

    def answered(self) -> list[bytes]:
        """The payloads that were answered since this was last asked."""
        answered, self._answered = self._answered, []
        return answered

    def feed(self, chunk: bytes) -> bytes:
        """What of the stream passes on.

        Raises:
            HeaderBlockError: there are too many bytes of headers in one block.
            RequestSizeError: there are too many bytes in one call.
        """
        data, headers = self._cutter.cut(chunk)
        for _at, kind, flags, stream, length in headers:
            if self._last_is_passing:
                self.complete += 1
            if kind in _OF_HEADER_BLOCKS:
                self._look_at_headers(kind, length)
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

    def _look_at_headers(self, kind: int, length: int) -> None:
        if kind == _HEADERS:
            self.requests += 1
            self._block_bytes = 0
        elif kind != _CONTINUATION:
            return
        # The frames' own headers count, so that there is an end to empty frames too.
        self._block_bytes += HEADER_BYTES + length
        if self._block_bytes > MAX_HEADER_BLOCK_BYTES:
            raise HeaderBlockError(f"headers of more than {MAX_HEADER_BLOCK_BYTES} bytes")


class Insertion:
    """Server to client: puts frames of ours between others, where the standard allows it."""

    def __init__(self, calls: Calls | None = None) -> None:
        self._calls = calls or Calls()
        self._cutter = _Cutter(0)
        self._waiting: list[bytes] = []
        # The server's first frame must be SETTINGS (section 3.4), and nothing may come between the
        # frames of one header block (section 4.3).
        self._open = False

    def insert(self, frame: bytes) -> bytes:
        """What to send at once; nothing if ours has to wait for the end of another."""
        self._waiting.append(frame)
        return self._release() if self._cutter.between_frames else b""

    def feed(self, chunk: bytes) -> bytes:
        """The stream, with what was waiting put in."""
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
