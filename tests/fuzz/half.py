"""What the fuzz target of the transport does with an input, and what must then be true.

An input is a list of frames in a short form, so that a mutation changes one frame and leaves the
lengths of the others right: kind, flags, stream, length (a byte each), payload. Kind 255 stands for
raw bytes between frames.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import hpack
import hyperframe.frame as hf

from agent.transport.half import BodyReceived, ConnectionFailed, Event, RequestStarted
from agent.transport.header_blocks import (
    EMPTY_TABLE,
    MAX_DROPPED_FIELDS,
    BlockError,
    ExcessError,
    decode,
    indexed,
    literal,
)
from agent.transport.http2_server import Http2Server
from agent.transport.request_rules import MAX_FIELDS
from tests.support.half_client import PREFACE, frame, frames_of, settings

OK = indexed(8) + literal(b"content-type", b"application/grpc")
TRAILERS = literal(b"grpc-status", b"0")
RAW = 255
# A partial frame and its header, a partial header block, and the responses below.
MOST_HELD = 9 + 16_384 + 8_192
RESPONSE = b"answer" * 500


def frames_in(data: bytes) -> Iterator[bytes]:
    """Return the frames of an input in the form of the wire."""
    at = 0
    while at + 4 <= len(data):
        kind, flags, stream, length = data[at : at + 4]
        payload = data[at + 4 : at + 4 + length]
        at += 4 + length
        yield payload if kind == RAW else frame(kind, flags, stream, payload)


def short_form(raw: bytes) -> bytes:
    """Return a frame of the wire as a part of an input."""
    return bytes([raw[3], raw[4], raw[8], len(raw) - 9]) + raw[9:]


def try_input(data: bytes) -> None:
    """Try an input, and fail if anything is wrong."""
    try_blocks(data)
    frames = [PREFACE + settings(), *frames_in(data)]
    try_splits(frames)
    try_responses(frames)


def try_splits(frames: list[bytes]) -> None:
    """Events do not depend on how bytes are cut, and what is held has a bound."""
    sent = b"".join(frames)
    whole, split = Http2Server(), Http2Server()
    expected = plain(whole.feed(sent, 1.0))
    step = 1 + sum(sent) % 31
    cuts = [*range(0, len(sent), step), len(sent)]
    events = []
    for start, end in pairwise(cuts):
        events += plain(split.feed(sent[start:end], 1.0))
        assert split.held_bytes <= MOST_HELD
    assert events == expected
    output = whole.take_output()
    assert output == split.take_output()
    # A frame of nine bytes has an answer of at most three times its size.
    assert len(output) <= 3 * len(sent) + 200
    check_end(whole, expected)


def plain(events: object) -> list[object]:
    """Return events that compare by what they say."""
    assert isinstance(events, list | tuple)
    return [
        (event.stream, event.headers.fields, event.ended)
        if isinstance(event, RequestStarted)
        else event
        for event in events
    ]


def check_end(half: Http2Server, events: list[object]) -> None:
    """Nothing is held and nothing happens after the connection has failed."""
    failed = [event for event in events if isinstance(event, ConnectionFailed)]
    if failed:
        assert failed == events[-1:]
        assert not half.held_bytes
        assert not half.is_mid_frame
        assert not half.feed(frame(6, 0, 0, bytes(8)), 1.0)
        assert not half.take_output()


def try_responses(frames: list[bytes]) -> None:
    """Each frame of the half is well formed, and no window is exceeded."""
    half = Http2Server()
    client = Windows()
    half.feed(b"", 1.0)
    for raw in frames:
        client.sends(raw)
        events = [*half.feed(raw, 1.0)]
        for event in events:
            answer(half, event)
        client.receives(b"".join(iter(half.take_output, b"")))
        events += half.take_events()
        if any(isinstance(event, ConnectionFailed) for event in events):
            break


def answer(half: Http2Server, event: Event) -> None:
    """Answer a request when it begins, or when it has ended."""
    if not isinstance(event, RequestStarted | BodyReceived):
        return
    if isinstance(event, BodyReceived):
        half.consume(event.stream, len(event.data))
    if event.ended or event.stream % 4 == 1:
        half.send_headers(event.stream, OK)
        half.send_data(event.stream, RESPONSE)
        half.send_trailers(event.stream, TRAILERS)
        half.release(event.stream)


class Windows:
    """The send window of the connection as a client counts it."""

    def __init__(self) -> None:
        self.window = 65_535

    def sends(self, raw: bytes) -> None:
        """Count a WINDOW_UPDATE of the client."""
        if raw[3:4] == b"\x08" and not any(raw[5:9]) and len(raw) == 13:
            self.window += int.from_bytes(raw[9:], "big") & 0x7FFF_FFFF

    def receives(self, output: bytes) -> None:
        """Count data of the half, whose frames must be whole."""
        for sent in frames_of(output):
            if isinstance(sent, hf.DataFrame):
                assert len(sent.data) <= 16_384
                self.window -= len(sent.data)
        assert self.window >= 0


def try_blocks(data: bytes) -> None:
    """Header blocks are decoded as hpack decodes them, or both refuse."""
    decoder, table = hpack.Decoder(max_header_list_size=1 << 20), EMPTY_TABLE
    for raw in frames_in(data):
        block = raw[9:]
        try:
            expected = [(bytes(n), bytes(v)) for n, v in decoder.decode(block, raw=True)]
        except hpack.HPACKError:
            expected = None
        try:
            read = decode(table, block, max_list_bytes=1 << 20, max_fields=1 << 20)
        except BlockError:
            assert expected is None
            return
        except ExcessError:  # it changes the size of the table far too often
            return
        assert [*read.fields] == expected
        try:
            short = decode(table, block, max_list_bytes=8192, max_fields=MAX_FIELDS)
        except ExcessError:
            assert len(read.fields) > MAX_DROPPED_FIELDS
            return
        assert short.table.fields == read.table.fields
        assert short.fields == read.fields[: len(short.fields)]
        table = read.table
        assert table.size == sum(32 + len(n) + len(v) for n, v in table.fields) <= table.limit
