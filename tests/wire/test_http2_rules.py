"""The rules of RFC 9113 that bind a server, each over a real socket.

grpcio is the control. `GRPCIO` lists where it does something else than the standard asks.
"""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from tests.support.rules import (
    CHECK,
    FLOW_CONTROL_ERROR,
    FRAME_SIZE_ERROR,
    PROTOCOL_ERROR,
    STREAM_CLOSED,
    WATCH,
    Closed,
    Deviation,
    Http,
    Open,
    Reset,
    Rule,
    Status,
    block,
    call,
    check,
    deviating,
    fields,
    opening,
    whole,
)
from tests.support.wire import (
    ACK,
    CONTINUATION,
    DATA,
    DEFAULT_WINDOW,
    ENABLE_PUSH,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    MAX_FRAME_SIZE,
    PADDED,
    PING,
    PRIORITIZED,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WIDEST,
    WINDOW_UPDATE,
    Wire,
    data,
    frame,
    literal,
    message,
    plain_block,
    priority,
    request_fields,
    rst_stream,
    settings,
    window_update,
)
from tests.wire.conftest import Server

UNKNOWN_KIND = 0x42
RESERVED_BIT = 1 << 31
BLOCK = plain_block(request_fields(CHECK))
SERVED = Status(0)
IS_FATAL = Closed(PROTOCOL_ERROR)
TOO_SHORT_OR_LONG = Closed(FRAME_SIZE_ERROR)
MALFORMED = Reset(PROTOCOL_ERROR)


def in_pieces(payload: bytes, *, sizes: Iterable[int]) -> list[bytes]:
    """Return HEADERS and CONTINUATION frames with the pieces of BLOCK, and the request."""
    pieces, at = [], 0
    for size in sizes:
        pieces.append(payload[at : at + size])
        at += size
    pieces.append(payload[at:])
    kinds = [HEADERS] + [CONTINUATION] * (len(pieces) - 1)
    flags = [0] * (len(pieces) - 1) + [END_HEADERS]
    return [
        *(frame(k, f, 1, p) for k, f, p in zip(kinds, flags, pieces, strict=True)),
        data(1, message(b""), end=True),
    ]


def padded(kind: int, flags: int, payload: bytes, padding: int) -> bytes:
    """Return a frame on stream 1 with so many bytes of padding."""
    return frame(kind, flags | PADDED, 1, bytes([padding]) + payload + bytes(padding))


def ended_then(*frames: bytes) -> Rule:
    """Return a rule for frames on a stream that both sides have ended."""

    def send(wire: Wire) -> Iterable[bytes]:
        wire.send(call(wire))
        wire.until_ended(1)
        return frames

    # A server need not remember for ever that a stream was closed.
    return Rule(send, Closed(STREAM_CLOSED), Reset(STREAM_CLOSED))


def reset_then(*frames: bytes) -> Rule:
    """Return a rule for frames on a stream that the client has reset."""
    return Rule(
        lambda wire: [opening(wire), rst_stream(1), *frames],
        Reset(STREAM_CLOSED),
        Closed(STREAM_CLOSED),
    )


def half_closed_then(*frames: bytes) -> Rule:
    """Return a rule for frames behind the END_STREAM of a call that goes on."""
    return Rule(
        lambda wire: [call(wire, path=WATCH), *frames],
        Reset(STREAM_CLOSED),
        Closed(STREAM_CLOSED),
    )


def fatal(*frames: bytes, by: Closed = IS_FATAL) -> Rule:
    """Return a rule for frames that end the connection."""
    return Rule(lambda _wire: frames, by)


def ignored(*frames: bytes) -> Rule:
    """Return a rule for frames without effect on the call behind them."""
    return Rule(lambda wire: [*frames, call(wire)], SERVED)


RULES: dict[str, Rule] = {
    # --- 4.1, 5.5: what a server does not know ---
    "unknown frame is ignored": ignored(frame(UNKNOWN_KIND, 0xFF, 0, b"text")),
    "unknown frame on an idle stream is ignored": ignored(frame(UNKNOWN_KIND, 0, 77, b"text")),
    "largest unknown frame is ignored": ignored(frame(UNKNOWN_KIND, 0, 0, bytes(16_384))),
    "reserved bit of a stream is ignored": Rule(
        lambda _wire: [
            frame(HEADERS, END_HEADERS, RESERVED_BIT | 1, BLOCK),
            frame(DATA, END_STREAM, RESERVED_BIT | 1, message(b"")),
        ],
        SERVED,
    ),
    "undefined flags of PING are ignored": ignored(frame(PING, 0xFE, 0, b"flagged!")),
    # --- 4.2: sizes ---
    "DATA of 16,384 bytes is taken": Rule(
        lambda wire: [
            opening(wire),
            data(1, message(_padded_request(16_379)), end=True),
        ],
        SERVED,
        Status(8),
        Status(13),
    ),
    "DATA of 16,385 bytes is too long": Rule(
        lambda wire: [opening(wire), data(1, bytes(16_385))],
        TOO_SHORT_OR_LONG,
        Reset(FRAME_SIZE_ERROR),
    ),
    "HEADERS of 16,385 bytes are too long": fatal(
        block(1, BLOCK + bytes(16_385 - len(BLOCK))), by=TOO_SHORT_OR_LONG
    ),
    "unknown frame of 16,385 bytes is too long": fatal(
        frame(UNKNOWN_KIND, payload=bytes(16_385)), by=TOO_SHORT_OR_LONG
    ),
    "SETTINGS of seven bytes have no valid size": fatal(
        frame(SETTINGS, payload=bytes(7)), by=TOO_SHORT_OR_LONG
    ),
    "acknowledgement of SETTINGS with a payload has no valid size": fatal(
        settings((3, 1), flags=ACK), by=TOO_SHORT_OR_LONG
    ),
    "PING of seven bytes has no valid size": fatal(
        frame(PING, payload=bytes(7)), by=TOO_SHORT_OR_LONG
    ),
    "PING of nine bytes has no valid size": fatal(
        frame(PING, payload=bytes(9)), by=TOO_SHORT_OR_LONG
    ),
    "GOAWAY of seven bytes has no valid size": fatal(
        frame(GOAWAY, payload=bytes(7)), by=TOO_SHORT_OR_LONG
    ),
    "WINDOW_UPDATE of three bytes has no valid size": fatal(
        frame(WINDOW_UPDATE, payload=b"\0\0\1"), by=TOO_SHORT_OR_LONG
    ),
    "WINDOW_UPDATE of a stream with five bytes has no valid size": Rule(
        lambda wire: [opening(wire), frame(WINDOW_UPDATE, 0, 1, b"\0\0\0\1\0")], TOO_SHORT_OR_LONG
    ),
    "RST_STREAM of three bytes has no valid size": Rule(
        lambda wire: [opening(wire), frame(RST_STREAM, 0, 1, bytes(3))], TOO_SHORT_OR_LONG
    ),
    "RST_STREAM of five bytes has no valid size": Rule(
        lambda wire: [opening(wire), frame(RST_STREAM, 0, 1, bytes(5))], TOO_SHORT_OR_LONG
    ),
    "PRIORITY of four bytes has no valid size": Rule(
        lambda wire: [opening(wire), frame(PRIORITY, 0, 1, bytes(4))],
        Reset(FRAME_SIZE_ERROR),
        TOO_SHORT_OR_LONG,
    ),
    # --- 4.3, 6.10: header blocks ---
    "header block in two frames is one": Rule(lambda _wire: in_pieces(BLOCK, sizes=[10]), SERVED),
    "header block in single bytes is one": Rule(
        lambda _wire: in_pieces(BLOCK[:40] + BLOCK[40:], sizes=[1] * 12), SERVED
    ),
    "empty HEADERS and CONTINUATION may begin a block": Rule(
        lambda _wire: in_pieces(BLOCK, sizes=[0, 0]), SERVED
    ),
    "DATA within a header block": fatal(block(1, BLOCK, 0), data(1, b"")),
    "PING within a header block": fatal(block(1, BLOCK, 0), frame(PING, payload=bytes(8))),
    "SETTINGS within a header block": fatal(block(1, BLOCK, 0), settings()),
    "PRIORITY within a header block": fatal(block(1, BLOCK, 0), priority(1)),
    "RST_STREAM within a header block": fatal(block(1, BLOCK, 0), rst_stream(1)),
    "WINDOW_UPDATE within a header block": fatal(block(1, BLOCK, 0), window_update(0, 1)),
    "unknown frame within a header block": fatal(block(1, BLOCK, 0), frame(UNKNOWN_KIND)),
    "HEADERS of another stream within a header block": fatal(block(1, BLOCK, 0), block(3, BLOCK)),
    "CONTINUATION of another stream": fatal(
        block(1, BLOCK, 0), frame(CONTINUATION, END_HEADERS, 3, b"")
    ),
    "CONTINUATION without HEADERS": fatal(frame(CONTINUATION, END_HEADERS, 1, BLOCK)),
    "CONTINUATION behind the end of the block": Rule(
        lambda wire: [opening(wire), frame(CONTINUATION, END_HEADERS, 1, b"")], IS_FATAL
    ),
    "CONTINUATION on stream 0": fatal(block(1, BLOCK, 0), frame(CONTINUATION, END_HEADERS, 0, b"")),
    # --- 5.1: states of a stream ---
    "DATA on an idle stream": fatal(data(1, b"x")),
    "RST_STREAM on an idle stream": fatal(rst_stream(1)),
    "WINDOW_UPDATE on an idle stream": fatal(window_update(1, 1)),
    "PRIORITY on an idle stream is allowed": ignored(priority(99)),
    "DATA behind END_STREAM": half_closed_then(data(1, b"x")),
    "HEADERS behind END_STREAM": half_closed_then(block(1, BLOCK)),
    "WINDOW_UPDATE behind END_STREAM is allowed": Rule(
        lambda wire: [call(wire, path=WATCH), window_update(1, 10)], Open()
    ),
    "PRIORITY behind END_STREAM is allowed": Rule(
        lambda wire: [call(wire, path=WATCH), priority(1)], Open()
    ),
    "DATA on a stream that was reset": reset_then(data(1, b"x")),
    "HEADERS on a stream that was reset": reset_then(block(1, BLOCK)),
    "PRIORITY on a stream that was reset is allowed": Rule(
        lambda wire: [opening(wire), rst_stream(1), priority(1)], Open()
    ),
    "second RST_STREAM is allowed": Rule(
        lambda wire: [opening(wire), rst_stream(1), rst_stream(1)], Open()
    ),
    "WINDOW_UPDATE on a stream that was reset is allowed": Rule(
        lambda wire: [opening(wire), rst_stream(1), window_update(1, 1)], Open()
    ),
    "DATA on a closed stream": ended_then(data(1, b"x")),
    "HEADERS on a closed stream": ended_then(block(1, BLOCK)),
    "WINDOW_UPDATE on a closed stream is allowed": Rule(
        lambda wire: [*_served(wire), window_update(1, 5)], SERVED
    ),
    "RST_STREAM on a closed stream is allowed": Rule(
        lambda wire: [*_served(wire), rst_stream(1)], SERVED
    ),
    "PRIORITY on a closed stream is allowed": Rule(
        lambda wire: [*_served(wire), priority(1)], SERVED
    ),
    # --- 5.1.1: identifiers ---
    "HEADERS on stream 0": fatal(block(0, BLOCK)),
    "HEADERS on an even stream": fatal(block(2, BLOCK)),
    "HEADERS on a lower stream": Rule(
        lambda wire: [call(wire, 5), block(3, BLOCK)], IS_FATAL, Closed(STREAM_CLOSED)
    ),
    "DATA on a lower stream that was skipped": Rule(
        lambda wire: [call(wire, 5), data(3, b"x")],
        IS_FATAL,
        Closed(STREAM_CLOSED),
        # The stream counts as closed; then this is a stream error on stream 3, not on stream 1.
        Open(),
    ),
    # --- 6.1: DATA ---
    "DATA on stream 0": fatal(data(0, b"x")),
    "DATA with padding": Rule(
        lambda wire: [opening(wire), padded(DATA, END_STREAM, message(b""), 200)], SERVED
    ),
    "DATA with padding of zero bytes": Rule(
        lambda wire: [opening(wire), padded(DATA, END_STREAM, message(b""), 0)], SERVED
    ),
    "DATA with nothing but padding": Rule(
        lambda wire: [
            opening(wire),
            padded(DATA, 0, b"", 255),
            data(1, message(b"")),
            padded(DATA, END_STREAM, b"", 0),
        ],
        SERVED,
    ),
    "DATA with more padding than payload": Rule(
        lambda wire: [opening(wire), frame(DATA, PADDED, 1, b"\5four")], IS_FATAL
    ),
    "DATA with padding but without its length": Rule(
        lambda wire: [opening(wire), frame(DATA, PADDED, 1, b"")],
        TOO_SHORT_OR_LONG,
        IS_FATAL,
        Reset(FRAME_SIZE_ERROR),
    ),
    # --- 6.2: HEADERS ---
    "HEADERS with padding": Rule(
        lambda _wire: [
            padded(HEADERS, END_HEADERS, BLOCK, 100),
            data(1, message(b""), end=True),
        ],
        SERVED,
    ),
    "HEADERS with more padding than payload": fatal(
        frame(HEADERS, PADDED | END_HEADERS, 1, bytes([len(BLOCK) + 1]) + BLOCK)
    ),
    "HEADERS with a priority": Rule(
        lambda _wire: [
            frame(HEADERS, PRIORITIZED | END_HEADERS, 1, b"\x80\0\0\x0b\xff" + BLOCK),
            data(1, message(b""), end=True),
        ],
        SERVED,
    ),
    "HEADERS with a priority and padding": Rule(
        lambda _wire: [
            padded(HEADERS, PRIORITIZED | END_HEADERS, b"\0\0\0\0\7" + BLOCK, 9),
            data(1, message(b""), end=True),
        ],
        SERVED,
    ),
    "HEADERS that are too short for their priority": Rule(
        lambda _wire: [frame(HEADERS, PRIORITIZED | END_HEADERS, 1, b"\0\0\0\0")],
        TOO_SHORT_OR_LONG,
        IS_FATAL,
    ),
    # --- 6.3, and 5.3.1 of RFC 7540: PRIORITY ---
    "PRIORITY on stream 0": fatal(priority(0)),
    "stream that depends on itself": Rule(
        lambda wire: [opening(wire), priority(1, 1)], MALFORMED, IS_FATAL
    ),
    # --- 6.4: RST_STREAM ---
    "RST_STREAM on stream 0": fatal(rst_stream(0)),
    "RST_STREAM with an unknown code": Rule(
        lambda wire: [opening(wire), rst_stream(1, 0xFFFFFFFF)], Open()
    ),
    # --- 6.5: SETTINGS ---
    "SETTINGS on a stream": fatal(settings(stream=1)),
    "unknown setting is ignored": ignored(settings((0x4242, 1), (0xFFFF, 0xFFFFFFFF))),
    "ENABLE_PUSH of 2": fatal(settings((ENABLE_PUSH, 2))),
    "ENABLE_PUSH of 1 is allowed": ignored(settings((ENABLE_PUSH, 1))),
    "INITIAL_WINDOW_SIZE above the largest window": fatal(
        settings((INITIAL_WINDOW_SIZE, WIDEST + 1)), by=Closed(FLOW_CONTROL_ERROR)
    ),
    "INITIAL_WINDOW_SIZE of the largest window is allowed": ignored(
        settings((INITIAL_WINDOW_SIZE, WIDEST))
    ),
    "MAX_FRAME_SIZE of 16,383": fatal(settings((MAX_FRAME_SIZE, 16_383))),
    "MAX_FRAME_SIZE of 2^24": fatal(settings((MAX_FRAME_SIZE, 1 << 24))),
    "MAX_FRAME_SIZE of 2^24 - 1 is allowed": ignored(settings((MAX_FRAME_SIZE, (1 << 24) - 1))),
    "INITIAL_WINDOW_SIZE that overflows the window of a stream": Rule(
        lambda wire: [
            call(wire, path=WATCH),
            window_update(1, WIDEST - DEFAULT_WINDOW),
            settings((INITIAL_WINDOW_SIZE, DEFAULT_WINDOW + 100)),
        ],
        Closed(FLOW_CONTROL_ERROR),
    ),
    # --- 6.6: PUSH_PROMISE ---
    "PUSH_PROMISE of a client": Rule(
        lambda wire: [opening(wire), frame(PUSH_PROMISE, END_HEADERS, 1, b"\0\0\0\2" + BLOCK)],
        IS_FATAL,
    ),
    # --- 6.7: PING ---
    "PING on a stream": fatal(frame(PING, 0, 1, bytes(8))),
    "answer to no PING is ignored": ignored(frame(PING, ACK, 0, b"unasked!")),
    # --- 6.8: GOAWAY ---
    "GOAWAY on a stream": fatal(frame(GOAWAY, 0, 1, bytes(8))),
    "call before a GOAWAY of the client is served": Rule(
        lambda wire: [call(wire), frame(GOAWAY, 0, 0, bytes(8) + b"why")], SERVED
    ),
    # --- 6.9: WINDOW_UPDATE ---
    "WINDOW_UPDATE of zero on the connection": fatal(window_update(0, 0)),
    "WINDOW_UPDATE of zero on a stream": Rule(
        lambda wire: [call(wire, path=WATCH), window_update(1, 0)], MALFORMED, IS_FATAL
    ),
    "reserved bit of an increment is ignored": ignored(window_update(0, RESERVED_BIT | 1)),
    "increment to the largest window is allowed": ignored(
        window_update(0, WIDEST - DEFAULT_WINDOW)
    ),
    "increment that overflows the window of the connection": fatal(
        window_update(0, WIDEST), by=Closed(FLOW_CONTROL_ERROR)
    ),
    "increments that overflow the window of the connection": fatal(
        window_update(0, WIDEST - DEFAULT_WINDOW),
        window_update(0, 1),
        by=Closed(FLOW_CONTROL_ERROR),
    ),
    "increment that overflows the window of a stream": Rule(
        lambda wire: [call(wire, path=WATCH), window_update(1, WIDEST)],
        Reset(FLOW_CONTROL_ERROR),
        Closed(FLOW_CONTROL_ERROR),
    ),
    # --- 8.1: shape of a request ---
    "request that ends with trailers": Rule(
        lambda wire: [
            opening(wire),
            data(1, message(b"")),
            wire.headers(1, [("x-checksum", "1")], end=True),
        ],
        SERVED,
    ),
    "trailers without END_STREAM": Rule(
        lambda wire: [opening(wire), data(1, b""), wire.headers(1, [("x-checksum", "1")])],
        MALFORMED,
        IS_FATAL,
    ),
    "trailers with a pseudo-header field": Rule(
        lambda wire: [
            opening(wire),
            data(1, message(b"")),
            wire.headers(1, [(":method", "POST")], end=True),
        ],
        MALFORMED,
        IS_FATAL,
    ),
    # --- 8.1.1: content-length ---
    "content-length that is right": Rule(fields(("content-length", "5")), SERVED),
    "content-length that is too small": Rule(fields(("content-length", "4")), MALFORMED),
    "content-length that is too large": Rule(fields(("content-length", "6")), MALFORMED),
    "content-length of several DATA frames": Rule(
        lambda wire: [
            opening(wire, 1, ("content-length", "5")),
            data(1, message(b"")[:2]),
            data(1, message(b"")[2:], end=True),
        ],
        SERVED,
    ),
    "content-length without a body": Rule(
        lambda _wire: [block(1, plain_block(request_fields(CHECK, ("content-length", "5"))))],
        MALFORMED,
    ),
    "content-length that is no number": Rule(fields(("content-length", "five")), MALFORMED),
    "content-length with a sign": Rule(fields(("content-length", "+5")), MALFORMED),
    "two content-lengths that differ": Rule(
        fields(("content-length", "5"), ("content-length", "6")), MALFORMED
    ),
    # --- 8.2: fields ---
    "field name in upper case": Rule(fields(("X-Upper", "1")), MALFORMED),
    "empty field name": Rule(fields(("", "1")), MALFORMED),
    "field name with a space": Rule(fields(("x y", "1")), MALFORMED),
    "field name with a colon": Rule(fields(("x:y", "1")), MALFORMED),
    "field name with a control character": Rule(fields(("x\x01y", "1")), MALFORMED),
    "field name beyond ASCII": Rule(fields(("x\xe9", "1")), MALFORMED),
    "field value with NUL": Rule(fields(("x", "a\0b")), MALFORMED),
    "field value with a line feed": Rule(fields(("x", "a\nb")), MALFORMED),
    "field value with a carriage return": Rule(fields(("x", "a\rb")), MALFORMED),
    "field value that begins with a space": Rule(fields(("x", " a")), MALFORMED),
    "field value that ends with a tab": Rule(fields(("x", "a\t")), MALFORMED),
    "empty field value is allowed": Rule(fields(("x", "")), SERVED),
    "field value with a space within is allowed": Rule(fields(("x", "a b")), SERVED),
    "connection": Rule(fields(("connection", "close")), MALFORMED),
    "keep-alive": Rule(fields(("keep-alive", "1")), MALFORMED),
    "proxy-connection": Rule(fields(("proxy-connection", "close")), MALFORMED),
    "transfer-encoding": Rule(fields(("transfer-encoding", "chunked")), MALFORMED),
    "upgrade": Rule(fields(("upgrade", "h2c")), MALFORMED),
    "te other than trailers": Rule(
        lambda _wire: whole(BLOCK.replace(literal(b"te", b"trailers"), literal(b"te", b"gzip"))),
        MALFORMED,
    ),
    # --- 8.3: pseudo-header fields ---
    "unknown pseudo-header field": Rule(
        lambda _wire: whole(literal(b":unknown", b"1") + BLOCK), MALFORMED
    ),
    "pseudo-header field of a response": Rule(
        lambda _wire: whole(literal(b":status", b"200") + BLOCK), MALFORMED
    ),
    "pseudo-header field behind a regular field": Rule(
        lambda _wire: whole(literal(b"x", b"1") + BLOCK), MALFORMED
    ),
    "request without :method": Rule(fields(without=":method"), MALFORMED),
    "request without :scheme": Rule(fields(without=":scheme"), MALFORMED),
    "request without :path": Rule(fields(without=":path"), MALFORMED),
    "request without :authority": Rule(fields(without=":authority"), SERVED),
    "empty :path": Rule(fields(path=""), MALFORMED),
    ":path without a slash": Rule(
        fields(path="grpc.health.v1.Health/Check"), MALFORMED, Status(12)
    ),
    **{
        f"{name} twice": Rule(
            lambda _wire, name=name, value=value: whole(  # type: ignore[misc]
                literal(name.encode(), value.encode()) + BLOCK
            ),
            MALFORMED,
        )
        for name, value in request_fields(CHECK)[:4]
    },
    # --- 8.5: CONNECT ---
    "CONNECT with :path and :scheme": Rule(fields(method="CONNECT"), MALFORMED),
    "CONNECT to an authority is no method of gRPC": Rule(
        lambda _wire: whole(literal(b":method", b"CONNECT") + literal(b":authority", b"host:1")),
        Http(405),
        Status(12),
        MALFORMED,
    ),
    "CONNECT with :protocol was not offered": Rule(
        lambda _wire: whole(
            literal(b":protocol", b"websocket")
            + plain_block(request_fields(CHECK, method="CONNECT"))
        ),
        MALFORMED,
    ),
}

GRPCIO: dict[str, Deviation] = {
    **deviating(
        "ends the connection without GOAWAY, or does not know padding and flags",
        Closed(None),
        "undefined flags of PING are ignored",
        "HEADERS of 16,385 bytes are too long",
        "SETTINGS of seven bytes have no valid size",
        "acknowledgement of SETTINGS with a payload has no valid size",
        "PING of seven bytes has no valid size",
        "PING of nine bytes has no valid size",
        "GOAWAY of seven bytes has no valid size",
        "WINDOW_UPDATE of three bytes has no valid size",
        "WINDOW_UPDATE of a stream with five bytes has no valid size",
        "RST_STREAM of three bytes has no valid size",
        "RST_STREAM of five bytes has no valid size",
        "DATA within a header block",
        "PING within a header block",
        "SETTINGS within a header block",
        "PRIORITY within a header block",
        "RST_STREAM within a header block",
        "WINDOW_UPDATE within a header block",
        "unknown frame within a header block",
        "HEADERS of another stream within a header block",
        "CONTINUATION of another stream",
        "CONTINUATION without HEADERS",
        "CONTINUATION behind the end of the block",
        "CONTINUATION on stream 0",
        "HEADERS with padding",
        "HEADERS with a priority and padding",
        "HEADERS that are too short for their priority",
        "SETTINGS on a stream",
        "ENABLE_PUSH of 2",
        "INITIAL_WINDOW_SIZE above the largest window",
        "MAX_FRAME_SIZE of 16,383",
        "MAX_FRAME_SIZE of 2^24",
        "WINDOW_UPDATE of zero on the connection",
        "WINDOW_UPDATE of zero on a stream",
        "trailers without END_STREAM",
    ),
    **deviating(
        "does not check this",
        Status(0),
        "DATA of 16,385 bytes is too long",
        "DATA on a closed stream",
        "HEADERS on a closed stream",
        "trailers with a pseudo-header field",
        "content-length that is too small",
        "content-length that is too large",
        "content-length that is no number",
        "content-length with a sign",
        "two content-lengths that differ",
        "field value with NUL",
        "field value with a line feed",
        "field value with a carriage return",
        "field value that begins with a space",
        "field value that ends with a tab",
        "connection",
        "keep-alive",
        "proxy-connection",
        "transfer-encoding",
        "upgrade",
        "pseudo-header field of a response",
        "pseudo-header field behind a regular field",
        ":method twice",
        ":scheme twice",
        ":path twice",
    ),
    **deviating(
        "ignores the frame",
        Open(),
        "unknown frame of 16,385 bytes is too long",
        "PRIORITY of four bytes has no valid size",
        "DATA on an idle stream",
        "RST_STREAM on an idle stream",
        "WINDOW_UPDATE on an idle stream",
        "DATA behind END_STREAM",
        "HEADERS behind END_STREAM",
        "DATA on a stream that was reset",
        "HEADERS on a stream that was reset",
        "HEADERS on stream 0",
        "HEADERS on an even stream",
        "HEADERS on a lower stream",
        "DATA on stream 0",
        "HEADERS with more padding than payload",
        "PRIORITY on stream 0",
        "stream that depends on itself",
        "RST_STREAM on stream 0",
        "INITIAL_WINDOW_SIZE that overflows the window of a stream",
        "PUSH_PROMISE of a client",
        "PING on a stream",
        "GOAWAY on a stream",
        "increment that overflows the window of the connection",
        "increments that overflow the window of the connection",
        "increment that overflows the window of a stream",
    ),
    **deviating(
        "does not know padding of DATA",
        Reset(1),
        "DATA with padding",
        "DATA with padding of zero bytes",
        "DATA with nothing but padding",
        "DATA with more padding than payload",
        "DATA with padding but without its length",
    ),
    **deviating(
        "does not check this; then the handler refuses the call",
        Status(12),
        "content-length without a body",
    ),
    **deviating(
        "answers malformed requests as calls",
        Status(13),
        "field name in upper case",
        "empty field name",
        "field name with a space",
        "field name with a colon",
        "field name with a control character",
        "field name beyond ASCII",
        "te other than trailers",
        "unknown pseudo-header field",
        ":authority twice",
        "CONNECT with :path and :scheme",
        "CONNECT to an authority is no method of gRPC",
        "CONNECT with :protocol was not offered",
    ),
    **deviating(
        "names an error of its own",
        Reset(2),
        "request without :method",
        "request without :scheme",
        "request without :path",
        "request without :authority",
    ),
    **deviating(
        "cancels the call",
        Status(1),
        "empty :path",
    ),
}


def _padded_request(size: int) -> bytes:
    """Return a message of `size` bytes that is valid protobuf: an unknown field of bytes."""
    head = b"\x7a" + (size - 4).to_bytes(1, "big") if size < 132 else b""
    if head:
        return head + bytes(size - 2)
    content = size - 4
    length = bytes([content & 127 | 128, content >> 7 & 127 | 128, content >> 14])
    return b"\x7a" + length + bytes(content)


def _served(wire: Wire) -> list[bytes]:
    wire.send(call(wire))
    wire.until_ended(1)
    return []


@pytest.mark.parametrize("name", RULES, ids=list(RULES))
def test_server_follows(server: Server, name: str) -> None:
    check(server.path, RULES[name], GRPCIO.get(name) if server.is_control else None)


def test_deviations_of_the_control_are_of_rules() -> None:
    assert set(GRPCIO) <= set(RULES)
