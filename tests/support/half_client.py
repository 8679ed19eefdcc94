"""A client of an HTTP/2 half in memory: makes frames, and reads the ones of the server.

It uses hpack and hyperframe, which share no code with the agent.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import hpack
import hyperframe.frame as hf

from agent.transport.half import Event, Half
from agent.transport.http2_server import Http2Server

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS = range(5)
PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(5, 10)
END_STREAM, END_HEADERS, ACK = 0x1, 0x4, 0x1
REQUEST = (
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/SpiffeWorkloadAPI/FetchX509SVID"),
    (":authority", "localhost"),
    ("te", "trailers"),
    ("content-type", "application/grpc"),
)


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    header = len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big")
    return header + payload


def settings(values: Iterable[tuple[int, int]] = ()) -> bytes:
    payload = b"".join(key.to_bytes(2, "big") + value.to_bytes(4, "big") for key, value in values)
    return frame(SETTINGS, 0, 0, payload)


def window_update(stream: int, more: int) -> bytes:
    return frame(WINDOW_UPDATE, 0, stream, more.to_bytes(4, "big"))


def reset(stream: int, code: int = 8) -> bytes:
    return frame(RST_STREAM, 0, stream, code.to_bytes(4, "big"))


def frames_of(output: bytes) -> list[hf.Frame]:
    """Return the frames in a server's output, which must be whole."""
    frames = []
    while output:
        parsed, length = hf.Frame.parse_frame_header(memoryview(output[:9]))
        assert len(output) >= 9 + length
        parsed.parse_body(memoryview(output[9 : 9 + length]))
        frames.append(parsed)
        output = output[9 + length :]
    return frames


class HalfClient:
    """Feeds a half, at a time that stands still unless a test sets it."""

    def __init__(self, half: Half | None = None, *, greets: bool = True) -> None:
        self.half = Http2Server() if half is None else half
        self.encoder = hpack.Encoder()
        self.decoder = hpack.Decoder()
        self.now = 1000.0
        if greets:
            assert not self.feed(PREFACE + settings())
            self.take()

    def feed(self, *data: bytes) -> list[Event]:
        return list(self.half.feed(b"".join(data), self.now))

    def take(self) -> list[hf.Frame]:
        """Return the frames that the half sends now."""
        return frames_of(b"".join(iter(self.half.take_output, b"")))

    def headers(
        self,
        stream: int = 1,
        fields: Sequence[tuple[str | bytes, str | bytes]] = REQUEST,
        *,
        end: bool = False,
    ) -> bytes:
        flags = END_HEADERS | (END_STREAM if end else 0)
        return frame(HEADERS, flags, stream, self.encoder.encode(fields))

    def fields_of(self, response: hf.Frame) -> dict[str, str]:
        assert isinstance(response, hf.HeadersFrame)
        return {str(name): str(value) for name, value in self.decoder.decode(response.data)}


def data(stream: int = 1, payload: bytes = b"", *, end: bool = False) -> bytes:
    return frame(DATA, END_STREAM if end else 0, stream, payload)
