"""Sessions of HTTP/2 clients for hypothesis: valid ones, and ones that were changed somewhere."""

from __future__ import annotations

from dataclasses import dataclass, field

import hpack
from hypothesis import strategies as st

from tests.support.half_client import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    PREFACE,
    PRIORITY,
    REQUEST,
    SETTINGS,
    frame,
    reset,
    settings,
    window_update,
)

PADDED, HAS_PRIORITY = 0x8, 0x20
MAX_STREAMS = 20


@dataclass
class Session:
    """Draws the frames of a client, and keeps what it may still send."""

    draw: st.DrawFn
    encoder: hpack.Encoder = field(default_factory=hpack.Encoder)
    frames: list[bytes] = field(default_factory=list)
    last: int = -1
    open: list[int] = field(default_factory=list)

    def request(self) -> None:
        if self.last >= 2 * MAX_STREAMS:
            return
        self.last += 2
        fields = [*REQUEST, *self.draw(_METADATA)]
        ended = self.draw(st.booleans())
        self._headers(self.last, fields, ended=ended)
        if not ended:
            self.open.append(self.last)

    def body(self) -> None:
        if not self.open:
            return
        stream = self.draw(st.sampled_from(self.open))
        payload, flags = self.draw(st.binary(max_size=40)), 0
        if self.draw(st.booleans()):
            padding = self.draw(st.integers(0, 5))
            payload, flags = bytes([padding]) + payload + bytes(padding), PADDED
        if self.draw(st.booleans()):
            flags |= END_STREAM
            self.open.remove(stream)
        self.frames.append(frame(DATA, flags, stream, payload))

    def trailers(self) -> None:
        if self.open:
            stream = self.open.pop()
            self._headers(stream, self.draw(_METADATA), ended=True)

    def reset(self) -> None:
        if self.open:
            self.frames.append(reset(self.open.pop(), self.draw(st.integers(0, 13))))

    def other(self) -> None:
        self.frames.append(self.draw(_OTHERS))
        if self.last > 0:
            stream = self.draw(st.integers(0, self.last // 2)) * 2 + 1
            self.frames.append(window_update(stream, self.draw(st.integers(1, 1000))))

    def _headers(self, stream: int, fields: list[tuple[str, str]], *, ended: bool) -> None:
        block = self.encoder.encode(fields, huffman=self.draw(st.booleans()))
        flags = END_STREAM if ended else 0
        prefix = suffix = b""
        if self.draw(st.booleans()):
            flags |= PADDED | HAS_PRIORITY
            prefix, suffix = b"\x03\0\0\0\0\x10", b"\0\0\0"
        cuts = sorted(self.draw(st.lists(st.integers(0, len(block)), max_size=3)))
        parts = [block[a:b] for a, b in zip([0, *cuts], [*cuts, len(block)], strict=True)]
        if len(parts) == 1:
            flags |= END_HEADERS
        self.frames.append(frame(HEADERS, flags, stream, prefix + parts[0] + suffix))
        for number, part in enumerate(parts[1:], 2):
            is_last = number == len(parts)
            self.frames.append(frame(CONTINUATION, END_HEADERS * is_last, stream, part))


_METADATA = st.lists(
    st.tuples(
        st.sampled_from(["grpc-timeout", "x-one", "x-two", "grpc-accept-encoding"]),
        st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=12),
    ),
    max_size=4,
)
_OTHERS = st.sampled_from(
    [
        settings(),
        settings([(4, 1000)]),
        settings([(1, 0), (5, 16_384), (3, 1), (0xBEEF, 7)]),
        frame(SETTINGS, ACK),
        frame(PING, 0, 0, b"12345678"),
        frame(PING, ACK, 0, b"12345678"),
        frame(PRIORITY, 0, 201, b"\0\0\0\0\1"),
        window_update(0, 77),
        frame(GOAWAY, 0, 0, bytes(8) + b"bye"),
        frame(0xAB, 0x55, 3, b"unknown"),
    ]
)


@st.composite
def valid_sessions(draw: st.DrawFn) -> list[bytes]:
    """Draw the preface and frames that a client may send."""
    session = Session(draw, frames=[PREFACE, settings()])
    steps = [session.request, session.body, session.body, session.other]
    steps += [session.trailers, session.reset]
    for step in draw(st.lists(st.integers(0, len(steps) - 1), max_size=25)):
        steps[step]()
    return session.frames


@st.composite
def changed_sessions(draw: st.DrawFn) -> list[bytes]:
    """Draw a session in which frames are changed, swapped, repeated or dropped."""
    frames = draw(valid_sessions())
    if len(frames) == 2:
        return frames
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(2, len(frames) - 1))
        frames[at : at + 1] = draw(st.sampled_from(_CHANGES))(draw, frames[at])
        if len(frames) == 2:
            break
    return frames


def _flip(draw: st.DrawFn, raw: bytes) -> list[bytes]:
    changed = bytearray(raw)
    # The length stays what it is, so that the frames behind this one do.
    at = draw(st.integers(3, len(changed) - 1))
    changed[at] ^= 1 << draw(st.integers(0, 7))
    return [bytes(changed)]


def _cut(draw: st.DrawFn, raw: bytes) -> list[bytes]:
    payload = raw[9 : draw(st.integers(9, len(raw)))]
    return [frame(raw[3], raw[4], int.from_bytes(raw[5:9], "big"), payload)]


def _extend(draw: st.DrawFn, raw: bytes) -> list[bytes]:
    payload = raw[9:] + draw(st.binary(min_size=1, max_size=10))
    return [frame(raw[3], raw[4], int.from_bytes(raw[5:9], "big"), payload)]


def _repeat(_draw: st.DrawFn, raw: bytes) -> list[bytes]:
    return [raw, raw]


def _drop(_draw: st.DrawFn, _raw: bytes) -> list[bytes]:
    return []


_CHANGES = [_flip, _flip, _cut, _extend, _repeat, _drop]
