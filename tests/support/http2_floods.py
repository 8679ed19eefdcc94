"""The known classes of attacks on HTTP/2 servers: what a client sends in each, without end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count

from tests.support.rules import WATCH
from tests.support.wire import (
    CONTINUATION,
    DATA,
    DEFAULT_WINDOW,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADER_TABLE_SIZE,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    MAX_FRAME_SIZE,
    PADDED,
    PING,
    PRIORITY,
    WIDEST,
    data,
    frame,
    integer,
    literal,
    message,
    plain_block,
    priority,
    request_fields,
    rst_stream,
    settings,
    window_update,
)

Flood = Callable[[], Iterator[bytes]]

FETCH = "/SpiffeWorkloadAPI/FetchX509SVID"
_SPIFFE = ("workload.spiffe.io", "true")
_BLOCK = plain_block(request_fields(FETCH, _SPIFFE))
_WATCH_BLOCK = plain_block(request_fields(WATCH))
_REQUEST = message(b"")
_MALFORMED = _BLOCK + literal(b"X-Upper", b"1")
_LENGTH = literal(b"content-length", b"4")


def _streams() -> Iterator[int]:
    return count(1, 2)


def _opened(stream: int, block: bytes = _BLOCK) -> bytes:
    return frame(HEADERS, END_HEADERS, stream, block)


def _called(stream: int, block: bytes = _BLOCK) -> bytes:
    return _opened(stream, block) + data(stream, _REQUEST, end=True)


def _repeated(*frames: bytes) -> Flood:
    """Return a flood of nothing but these frames."""

    def send() -> Iterator[bytes]:
        while True:
            yield from frames

    return send


def _on_a_stream(*frames: bytes, called: bool = True) -> Flood:
    """Return a flood of these frames behind a call on stream 1."""

    def send() -> Iterator[bytes]:
        yield _called(1) if called else _opened(1)
        while True:
            yield from frames

    return send


def _for_each_stream(make: Callable[[int], bytes]) -> Flood:
    """Return a flood of streams, each with these frames."""
    return lambda: (make(stream) for stream in _streams())


def _dribble() -> Iterator[bytes]:
    """Responses that are taken in single bytes."""
    yield settings((INITIAL_WINDOW_SIZE, 0))
    for stream in range(1, 100, 2):
        yield _called(stream)
    while True:
        for stream in range(1, 100, 2):
            yield window_update(stream, 1)


def _resized_windows() -> Iterator[bytes]:
    """Windows of many streams that are resized again and again."""
    for stream in range(1, 200, 2):
        yield _called(stream)
    while True:
        yield settings(*((INITIAL_WINDOW_SIZE, size) for size in (0, 65_535) * 500))


def _continued(piece: bytes) -> Flood:
    """Return a flood of one header block that never ends."""

    def send() -> Iterator[bytes]:
        yield frame(HEADERS, 0, 1, _BLOCK)
        while True:
            yield frame(CONTINUATION, 0, 1, piece)

    return send


def _bomb() -> Iterator[bytes]:
    """Header blocks with thousands of references to one large entry of the table."""
    entry = literal(b"x", b"v" * 3900, first=0x40)
    yield frame(HEADERS, END_HEADERS | END_STREAM, 1, _BLOCK + entry)
    for stream in _streams():
        if stream > 1:
            block = _BLOCK + integer(62, 7, 0x80) * 7000
            yield frame(HEADERS, END_HEADERS | END_STREAM, stream, block)


def _unread() -> Iterator[bytes]:
    """Calls without end whose responses flow control lets pass, and which nobody reads."""
    yield settings((INITIAL_WINDOW_SIZE, WIDEST)) + window_update(0, WIDEST - DEFAULT_WINDOW)
    for stream in _streams():
        yield _called(stream)


def _tiny_fields() -> Iterator[bytes]:
    """Header blocks with thousands of fields, for calls that stay half open."""
    for stream in _streams():
        yield _opened(stream, _BLOCK + b"\0\x01x\0" * 1800)


def _empty_names() -> Iterator[bytes]:
    for stream in _streams():
        yield _opened(stream, _BLOCK + b"\0\0\0" * 2000)


def _resized_tables() -> Iterator[bytes]:
    for stream in _streams():
        yield _opened(stream, b"\x20\x3f\xe1\x1f" * 1500 + _BLOCK)


CLASSES: dict[str, dict[str, Flood]] = {
    "CVE-2019-9511, data dribble": {"single bytes": _dribble},
    "CVE-2019-9512, PING": {
        "PING": lambda: (frame(PING, payload=n.to_bytes(8, "big")) for n in count()),
    },
    "CVE-2019-9513, resource loop": {
        "priorities": _for_each_stream(lambda stream: priority(stream, stream + 2)),
        "priorities of one stream": _on_a_stream(priority(1, 3), priority(1, 5)),
    },
    "CVE-2019-9514, reset": {
        "malformed requests": _for_each_stream(lambda stream: _opened(stream, _MALFORMED)),
        "RST_STREAM of one stream": _on_a_stream(rst_stream(1)),
        "streams above the limit": _for_each_stream(lambda stream: _called(stream, _WATCH_BLOCK)),
    },
    "CVE-2019-9515, SETTINGS": {
        "SETTINGS": _repeated(settings()),
        "long SETTINGS": _repeated(settings(*[(0x4242, 1)] * 2700)),
        "windows resized": _resized_windows,
        "tables resized": _repeated(
            settings((HEADER_TABLE_SIZE, 0)), settings((HEADER_TABLE_SIZE, 4096))
        ),
        "frames resized": _repeated(
            settings((MAX_FRAME_SIZE, 16_384)), settings((MAX_FRAME_SIZE, 1 << 20))
        ),
        "acknowledgements": _repeated(settings(flags=1)),
    },
    "CVE-2019-9516, fields without a name": {"fields without a name": _empty_names},
    "CVE-2019-9517, internal data buffering": {"responses that are not read": _unread},
    "CVE-2019-9518, empty frames": {
        "empty DATA": _on_a_stream(data(1), called=False),
        "DATA of padding": _on_a_stream(frame(DATA, PADDED, 1, b"\xff" + bytes(255)), called=False),
        "empty CONTINUATION": _continued(b""),
        "empty unknown frames": _repeated(frame(0x42)),
    },
    "CVE-2023-44487, rapid reset": {
        "calls": _for_each_stream(lambda stream: _called(stream) + rst_stream(stream)),
        "half requests": _for_each_stream(lambda stream: _opened(stream) + rst_stream(stream)),
    },
    "CVE-2024-27316 and others, CONTINUATION": {
        "pieces of fields": _continued(b"\0\x01a\x04aaaa" * 100),
        "single bytes": _continued(b"\0"),
    },
    "CVE-2025-8671, MadeYouReset": {
        "WINDOW_UPDATE of zero": _for_each_stream(
            lambda stream: _called(stream) + window_update(stream, 0)
        ),
        "window too wide": _for_each_stream(
            lambda stream: _called(stream) + window_update(stream, WIDEST)
        ),
        "DATA behind the end": _for_each_stream(
            lambda stream: _called(stream) + data(stream, b"x")
        ),
        "HEADERS behind the end": _for_each_stream(
            lambda stream: _called(stream) + _opened(stream)
        ),
        "PRIORITY of a wrong size": _for_each_stream(
            lambda stream: _called(stream) + frame(PRIORITY, 0, stream, b"\0")
        ),
        "stream that depends on itself": _for_each_stream(
            lambda stream: _called(stream) + priority(stream, stream)
        ),
        "content-length that does not match": _for_each_stream(
            lambda stream: _opened(stream, _BLOCK + _LENGTH) + data(stream, _REQUEST)
        ),
    },
    "CVE-2016-6581 and others, HPACK": {
        "references to one entry": _bomb,
        "tiny fields": _tiny_fields,
        "table resized": _resized_tables,
    },
    "others of the kind": {
        "WINDOW_UPDATE": _repeated(window_update(0, 1)),
        "unknown frames": _repeated(frame(0x42, 0, 0, bytes(100))),
        "GOAWAY": _repeated(frame(GOAWAY, payload=bytes(8))),
    },
}
