"""The server's half of HTTP/2 by the h2 library, behind the Protocol of the agent's own half.

The transport's tests run over both. The engine differs from `Http2Server` where h2 does:

- h2 ends the connection for what is an error of one stream: a malformed request, too many streams.
- h2 refuses a request that has neither `:authority` nor `host`, or one that differs from the other.
- h2 takes no frame behind a GOAWAY of the client, and so the engine hides GOAWAY from it.
- h2 ends the connection for fields beyond MAX_HEADER_LIST_SIZE once the client has acknowledged
  that setting, and does not count the fields.
- h2 bounds neither frames without a request nor resets.
- h2 allows 64 CONTINUATION frames, and answers each frame of a stream that it reset.
- h2 neither compares content-length with a request that has no body, nor shares Headers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import h2.config
import h2.connection
import h2.events as he
import h2.exceptions
import h2.settings
import hpack
import hyperframe.frame as hf

from agent.transport.bounds import DEFAULT_BOUNDS, Bounds
from agent.transport.half import (
    BodyReceived,
    ConnectionFailed,
    ErrorCode,
    Event,
    Headers,
    PingAnswered,
    RequestStarted,
    StreamDrained,
    StreamReset,
)
from agent.transport.request_rules import MAX_LIST_BYTES

_PREFACE_BYTES, _HEADER_BYTES = 24, 9
_HIGHEST_STREAM = 2**31 - 1
_GO_AWAY = 7


class _Response:
    """What waits for flow control on a stream."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.trailers: bytes | None = None


class H2Engine:
    """A `Half` made of h2."""

    def __init__(self, bounds: Bounds = DEFAULT_BOUNDS) -> None:
        config = h2.config.H2Configuration(client_side=False, header_encoding=None)
        self._connection = h2.connection.H2Connection(config)
        codes = h2.settings.SettingCodes
        # h2 counts streams whose handler runs no more than others: `_busy` is the real bound.
        values = {
            codes.MAX_CONCURRENT_STREAMS: bounds.handlers,
            codes.MAX_HEADER_LIST_SIZE: MAX_LIST_BYTES,
        }
        self._connection.local_settings = h2.settings.Settings(client=False, initial_values=values)
        self._connection.initiate_connection()
        self._bounds = bounds
        self._held = bytearray()
        self._place = 0
        self._in_block = False
        self._failed = False
        self._events: list[Event] = []
        self._extra = bytearray()
        self._responses: dict[int, _Response] = {}
        self._open: dict[int, bool] = {}  # whether the request has ended
        self._busy: set[int] = set()
        self._last = 0
        self._last_served = _HIGHEST_STREAM

    # --- what comes -------------------------------------------------------------------------------

    def feed(self, data: bytes, now: float) -> Sequence[Event]:
        """Take bytes of the client, and return the events in them."""
        del now
        if self._failed:
            return ()
        self._held += data
        try:
            for part in iter(self._next_part, b""):
                self._take(part)
        except h2.exceptions.ProtocolError as error:
            self._failed = True
            self._open.clear()
            self._responses.clear()
            self._held.clear()
            self._events.append(
                ConnectionFailed(
                    ErrorCode(int(error.error_code)), str(error) or type(error).__name__
                )
            )
        if not self._failed:
            self._send_waiting()
        return self.take_events()

    def take_events(self) -> Sequence[Event]:
        """Return the events since the last call."""
        events, self._events = self._events, []
        return events

    def _next_part(self) -> bytes:
        # A whole frame, or the preface: so the place of an answer to a PING is known.
        size = _PREFACE_BYTES
        if self._place:
            size = _HEADER_BYTES + int.from_bytes(self._held[:3], "big")
            if len(self._held) < _HEADER_BYTES:
                return b""
        if len(self._held) < size < _HEADER_BYTES + 16_385:
            return b""
        part = bytes(self._held[:size])
        del self._held[:size]
        return part

    def _take(self, part: bytes) -> None:
        if self._place:
            kind, flags = part[3], part[4]
            if kind in {1, 9}:
                self._in_block = not flags & 4
            if kind == _GO_AWAY and not any(part[5:9]) and len(part) >= 17 and not self._in_block:
                self._place += len(part)
                return
        place, self._place = self._place, self._place + len(part)
        for event in self._connection.receive_data(part):
            if isinstance(event, he.PingAckReceived):
                self._events.append(PingAnswered(event.ping_data, place))
            elif (translate := _TRANSLATE.get(type(event))) is not None:
                translate(self, event)

    def _on_request(self, event: he.RequestReceived) -> None:
        stream = event.stream_id
        assert stream is not None
        self._last = stream
        if stream > self._last_served:
            return
        bounds = self._bounds
        if len(self._open) >= bounds.streams or len(self._busy) >= bounds.handlers:
            self._reset(stream, ErrorCode.REFUSED_STREAM)
            self._events.append(StreamReset(stream, ErrorCode.REFUSED_STREAM, by_client=False))
            return
        fields = tuple((bytes(name), bytes(value)) for name, value in event.headers or ())
        ended = event.stream_ended is not None
        self._open[stream] = ended
        self._busy.add(stream)
        self._events.append(RequestStarted(stream, Headers(fields), ended))

    def _on_data(self, event: he.DataReceived) -> None:
        stream, size = event.stream_id, event.flow_controlled_length
        assert stream is not None
        assert size is not None
        if size:
            self._connection.increment_flow_control_window(size)
        ended = event.stream_ended is not None
        if stream in self._open:
            self._open[stream] = ended
            data = bytes(event.data or b"")
            self._events.append(BodyReceived(stream, data, ended))
            self.consume(stream, size - len(data))

    def _on_trailers(self, event: he.TrailersReceived) -> None:
        stream = event.stream_id
        assert stream is not None
        if stream in self._open:
            self._open[stream] = True
            self._events.append(BodyReceived(stream, b"", ended=True))

    def _on_reset(self, event: he.StreamReset) -> None:
        stream = event.stream_id
        assert stream is not None
        if self._open.pop(stream, None) is not None:
            self._responses.pop(stream, None)
            code = int(event.error_code or 0)
            self._events.append(StreamReset(stream, code, by_client=bool(event.remote_reset)))

    # --- what goes --------------------------------------------------------------------------------

    def take_output(self) -> bytes:
        """Return the next bytes to send, and forget them; empty if there are none now."""
        output = self._connection.data_to_send(self._bounds.output_bytes)
        if not output:
            output = bytes(self._extra)
            self._extra.clear()
        return output

    @property
    def held_bytes(self) -> int:
        """The bytes of a partial frame and of unsent data."""
        return len(self._held) + sum(len(waiting.data) for waiting in self._responses.values())

    @property
    def is_mid_frame(self) -> bool:
        """Whether a frame or a header block has begun and not ended."""
        return bool(self._held) or self._in_block

    @property
    def missing_body(self) -> int:
        """Nothing: the h2 library does not tell."""
        return 0

    def send_headers(self, stream: int, block: bytes, *, end: bool = False) -> None:
        """Send a header block; `end` ends the response (trailers-only)."""
        if end:
            self.send_trailers(stream, block)
        elif stream in self._open:
            self._connection.send_headers(stream, _fields(block))

    def send_data(self, stream: int, data: bytes) -> bool:
        """Send data as flow control allows, and keep the rest."""
        if stream not in self._open:
            return True
        self._responses.setdefault(stream, _Response()).data += data
        self._send(stream)
        return stream not in self._responses

    def send_trailers(self, stream: int, block: bytes) -> None:
        """End the response with trailers, behind all data that waits."""
        if stream in self._responses:
            self._responses[stream].trailers = block
        elif stream in self._open:
            self._connection.send_headers(stream, _fields(block), end_stream=True)
            if not self._open.pop(stream):
                self._connection.reset_stream(stream, ErrorCode.NO_ERROR)

    def consume(self, stream: int, count: int) -> None:
        """Let the client send so many bytes more on a stream."""
        if count and self._open.get(stream) is False:
            self._connection.increment_flow_control_window(count, stream)

    def reset_stream(self, stream: int, code: ErrorCode) -> None:
        """End a stream at once. Data that waits is dropped."""
        if stream in self._open:
            self._reset(stream, code)

    def release(self, stream: int) -> None:
        """Stop counting a stream: its handler has ended."""
        self._busy.discard(stream)

    def ping(self, payload: bytes) -> None:
        """Send a PING with these eight bytes."""
        self._connection.ping(payload)

    def go_away(
        self, *, last: bool, code: ErrorCode = ErrorCode.NO_ERROR, reason: str = ""
    ) -> None:
        """Send GOAWAY by a frame made here: after one of its own, h2 sends nothing."""
        if last:
            self._last_served = min(self._last, self._last_served)
        frame = hf.GoAwayFrame(
            0,
            last_stream_id=self._last_served,
            error_code=code,
            additional_data=reason.encode(),
        )
        self._extra += frame.serialize()

    def _reset(self, stream: int, code: ErrorCode) -> None:
        self._connection.reset_stream(stream, code)
        self._open.pop(stream, None)
        self._responses.pop(stream, None)

    def _send_waiting(self) -> None:
        for stream in list(self._responses):
            self._send(stream)
            if stream not in self._responses:
                self._events.append(StreamDrained(stream))

    def _send(self, stream: int) -> None:
        waiting, connection = self._responses[stream], self._connection
        while waiting.data:
            size = min(
                connection.local_flow_control_window(stream), connection.max_outbound_frame_size
            )
            if size <= 0:
                return
            connection.send_data(stream, bytes(waiting.data[:size]))
            del waiting.data[:size]
        del self._responses[stream]
        if waiting.trailers is not None:
            self.send_trailers(stream, waiting.trailers)


def _fields(block: bytes) -> list[tuple[bytes, bytes]]:
    return [(bytes(name), bytes(value)) for name, value in hpack.Decoder().decode(block, raw=True)]


_TRANSLATE: dict[type[he.Event], Callable[[H2Engine, Any], None]] = {
    he.RequestReceived: H2Engine._on_request,
    he.DataReceived: H2Engine._on_data,
    he.TrailersReceived: H2Engine._on_trailers,
    he.StreamReset: H2Engine._on_reset,
}
