"""An HTTP/2 client that sends exactly the frames that a test names (RFC 9113), valid or not.

`hpack` encodes header blocks and decodes the server's. Nothing else interprets what a test sends.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field

import hpack

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE = 0, 1, 2, 3, 4, 5
PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 6, 7, 8, 9
ACK = END_STREAM = 0x1
END_HEADERS, PADDED, PRIORITIZED = 0x4, 0x8, 0x20
HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_CONCURRENT_STREAMS = 1, 2, 3
INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE, MAX_HEADER_LIST_SIZE = 4, 5, 6
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
WIDEST = (1 << 31) - 1
"""The largest window, stream and increment."""
DEFAULT_WINDOW = 65_535

Fields = list[tuple[str, str]]

_HEADER_BYTES = 9
_REPLY_SECONDS = 10.0


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    """Return one frame; `stream` may have the reserved bit."""
    head = struct.pack(">I", len(payload))[1:] + bytes([kind, flags])
    return head + stream.to_bytes(4, "big") + payload


def settings(*pairs: tuple[int, int], flags: int = 0, stream: int = 0) -> bytes:
    """Return a SETTINGS frame."""
    return frame(SETTINGS, flags, stream, b"".join(struct.pack(">HI", *pair) for pair in pairs))


def rst_stream(stream: int, code: int = 8) -> bytes:
    """Return a RST_STREAM frame; the code is CANCEL."""
    return frame(RST_STREAM, 0, stream, code.to_bytes(4, "big"))


def window_update(stream: int, increment: int) -> bytes:
    """Return a WINDOW_UPDATE frame."""
    return frame(WINDOW_UPDATE, 0, stream, increment.to_bytes(4, "big"))


def priority(stream: int, depends_on: int = 0) -> bytes:
    """Return a PRIORITY frame."""
    return frame(PRIORITY, 0, stream, depends_on.to_bytes(4, "big") + b"\x0f")


def data(stream: int, payload: bytes = b"", *, end: bool = False) -> bytes:
    """Return a DATA frame."""
    return frame(DATA, END_STREAM if end else 0, stream, payload)


def literal(name: bytes, value: bytes, *, first: int = 0) -> bytes:
    """Return a field with a literal name and value, without Huffman coding (RFC 7541 section 6.2).

    Args:
        name: at most 126 bytes.
        value: any length.
        first: 0x00 without indexing, 0x10 never indexed, 0x40 with incremental indexing.
    """
    return bytes([first]) + integer(len(name), 7) + name + integer(len(value), 7) + value


def integer(value: int, prefix_bits: int, first: int = 0) -> bytes:
    """Return an integer with a prefix (RFC 7541 section 5.1)."""
    most = (1 << prefix_bits) - 1
    if value < most:
        return bytes([first | value])
    rest, value = bytearray([first | most]), value - most
    while value >= 128:
        rest.append(value % 128 | 128)
        value //= 128
    rest.append(value)
    return bytes(rest)


def plain_block(fields: Iterable[tuple[str, str]]) -> bytes:
    """Return a header block of literals that uses no table: the same bytes on every connection."""
    return b"".join(literal(name.encode(), value.encode()) for name, value in fields)


def request_fields(path: str = "", /, *extra: tuple[str, str], **pseudo: str) -> Fields:
    """Return the fields of a gRPC request; `pseudo` replaces pseudo-header fields by name."""
    first = {"method": "POST", "scheme": "http", "path": path, "authority": "localhost", **pseudo}
    return [
        *((f":{name}", value) for name, value in first.items()),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        *extra,
    ]


def message(payload: bytes, *, compressed: int = 0) -> bytes:
    """Return a length-prefixed message of gRPC."""
    return struct.pack(">BI", compressed, len(payload)) + payload


@dataclass
class Response:
    """What has come of one stream's response."""

    blocks: list[Fields] = field(default_factory=list)
    """Its header blocks: headers and trailers, or trailers only."""
    body: bytes = b""
    frames: list[int] = field(default_factory=list)
    """The payload sizes of its DATA frames."""
    ended: bool = False
    reset: int | None = None
    """The code of RST_STREAM."""

    def value(self, name: str) -> str | None:
        """Return the last value of a field in headers or trailers."""
        found = [value for block in self.blocks for key, value in block if key == name]
        return found[-1] if found else None

    @property
    def grpc_status(self) -> int | None:
        """The status of the call."""
        value = self.value("grpc-status")
        return None if value is None else int(value)

    @property
    def messages(self) -> list[bytes]:
        """The complete messages of the body."""
        found, rest = [], self.body
        while len(rest) >= 5 and len(rest) >= (end := 5 + int.from_bytes(rest[1:5], "big")):
            found.append(rest[5:end])
            rest = rest[end:]
        return found


class Wire:
    """One connection. The creator closes `sock`.

    Attributes:
        responses: by stream.
        goaways: last stream and code of each GOAWAY frame.
        settings: the server's settings.
        pings: payloads of the server's PINGs; answered at once, unless `answers` is false.
        acks: payloads of PINGs that the server answered.
        settings_acks: how many SETTINGS frames the server acknowledged.
        windows: the increments of the server's WINDOW_UPDATE frames by stream.
        is_closed: whether the server closed the connection.
    """

    def __init__(self, sock: socket.socket, *, table_size: int = 4096) -> None:
        self.sock = sock
        self.responses: dict[int, Response] = {}
        self.goaways: list[tuple[int, int]] = []
        self.settings: dict[int, int] = {}
        self.pings: list[bytes] = []
        self.acks: list[bytes] = []
        self.settings_acks = 0
        self.windows: dict[int, int] = {}
        self.is_closed = False
        self.answers = True
        self.encoder = hpack.Encoder()
        self.decoder = hpack.Decoder()
        self.decoder.max_allowed_table_size = table_size
        self.decoder.header_table_size = table_size
        self._held = bytearray()
        self._block = b""

    def send(self, *parts: bytes) -> None:
        """Send bytes. A connection that the server has closed is no error here."""
        try:
            self.sock.sendall(b"".join(parts))
        except ConnectionError:
            self._drain()

    def start(self, *pairs: tuple[int, int]) -> None:
        """Send the preface and SETTINGS."""
        self.send(PREFACE, settings(*pairs))

    def headers(
        self, stream: int, fields: Iterable[tuple[str, str]], *, end: bool = False, flags: int = 0
    ) -> bytes:
        """Encode a HEADERS frame by this connection's table."""
        block = self.encoder.encode(list(fields))
        return frame(HEADERS, END_HEADERS | (END_STREAM if end else 0) | flags, stream, block)

    def response(self, stream: int) -> Response:
        """Return the response so far."""
        return self.responses.setdefault(stream, Response())

    def read(self) -> bool:
        """Take the bytes of one recv(2); return whether the connection is still open.

        Raises:
            TimeoutError: nothing came for ten seconds.
        """
        try:
            chunk = self.sock.recv(65_536)
        except ConnectionError:
            chunk = b""
        if not chunk:
            self.is_closed = True
            return False
        self._held += chunk
        for kind, flags, stream, payload in self._frames():
            self._take(kind, flags, stream, payload)
        return True

    def until_ended(self, stream: int) -> Response:
        """Read until a response has ended, or the connection has."""
        while self.open(stream) and self.read():
            pass
        return self.response(stream)

    def until_messages(self, stream: int, count: int = 1) -> Response:
        """Read until a response has so many messages, or has ended."""
        while len(self.response(stream).messages) < count and self.open(stream) and self.read():
            pass
        return self.response(stream)

    def until_closed(self) -> None:
        """Read until the server has closed the connection."""
        while self.read():
            pass

    def barrier(self, payload: bytes = b"\0barrier") -> bool:
        """Send a PING and read until its answer; return whether the connection is still open.

        The server has processed all frames before, and has sent their direct answers.
        """
        wanted = self.acks.count(payload) + 1
        self.send(frame(PING, payload=payload))
        while self.acks.count(payload) < wanted and self.read():
            pass
        return not self.is_closed

    def open(self, stream: int) -> bool:
        """Whether the server may still send on a stream."""
        response = self.response(stream)
        return not response.ended and response.reset is None

    def _drain(self) -> None:
        try:
            self.until_closed()
        except TimeoutError:
            self.is_closed = True

    def _frames(self) -> Iterator[tuple[int, int, int, bytes]]:
        held, at = self._held, 0
        while at + _HEADER_BYTES <= len(held):
            end = at + _HEADER_BYTES + int.from_bytes(held[at : at + 3], "big")
            if end > len(held):
                break
            stream = int.from_bytes(held[at + 5 : at + 9], "big") & WIDEST
            yield held[at + 3], held[at + 4], stream, bytes(held[at + 9 : end])
            at = end
        del held[:at]

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == DATA:
            response = self.response(stream)
            response.body += payload
            response.frames.append(len(payload))
            response.ended |= bool(flags & END_STREAM)
        elif kind in (HEADERS, CONTINUATION):
            self._take_headers(flags, stream, payload)
        elif kind == RST_STREAM:
            self.response(stream).reset = int.from_bytes(payload, "big")
        elif kind == SETTINGS:
            self._take_settings(flags, payload)
        elif kind == PING:
            self._take_ping(flags, payload)
        elif kind == GOAWAY:
            self.goaways.append(struct.unpack_from(">II", payload))
        elif kind == WINDOW_UPDATE:
            self.windows[stream] = self.windows.get(stream, 0) + int.from_bytes(payload, "big")

    def _take_headers(self, flags: int, stream: int, payload: bytes) -> None:
        self._block += payload
        if not flags & END_HEADERS:
            return
        block, self._block = self._block, b""
        fields = [(_text(name), _text(value)) for name, value in self.decoder.decode(block)]
        response = self.response(stream)
        response.blocks.append(fields)
        response.ended |= bool(flags & END_STREAM)

    def _take_settings(self, flags: int, payload: bytes) -> None:
        if flags & ACK:
            self.settings_acks += 1
            return
        self.settings.update(struct.iter_unpack(">HI", payload))
        self.send(settings(flags=ACK))

    def _take_ping(self, flags: int, payload: bytes) -> None:
        if flags & ACK:
            self.acks.append(payload)
            return
        self.pings.append(payload)
        if self.answers:
            self.send(frame(PING, ACK, payload=payload))


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


@contextmanager
def connected(path: str, *, table_size: int = 4096) -> Iterator[Wire]:
    """Yield a connection on which nothing was sent.

    Args:
        path: the server's socket.
        table_size: of the decoder; the client must announce it (SETTINGS_HEADER_TABLE_SIZE).
    """
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as sock:
        sock.connect(path)
        sock.settimeout(_REPLY_SECONDS)
        yield Wire(sock, table_size=table_size)


@contextmanager
def started(path: str, *pairs: tuple[int, int]) -> Iterator[Wire]:
    """Yield a connection with preface and SETTINGS sent."""
    with connected(path) as wire:
        wire.start(*pairs)
        yield wire
