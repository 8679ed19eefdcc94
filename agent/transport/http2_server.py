"""The server's half of an HTTP/2 connection (RFC 9113), without I/O.

`Http2Server` is a `Half`: it takes a client's bytes, and returns events and bytes to send. It
bounds what a client may make it hold and do (`agent.transport.bounds`).
"""

from __future__ import annotations

from collections import deque
from functools import lru_cache
from typing import TYPE_CHECKING, Final, cast

from agent.transport.bounds import (
    BYTES_THAT_EARN,
    DEFAULT_BOUNDS,
    EARNED_BY_REQUEST,
    EARNED_BY_RESPONSE,
    FAULT_COST,
    FRAME_COST,
    RESET_COST,
    FrameBudget,
)
from agent.transport.frames import (
    ACK,
    CONTINUATION,
    DATA,
    DEFAULT_FRAME_BYTES,
    DEFAULT_WINDOW,
    ENABLE_PUSH,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HAS_PRIORITY,
    HEADER,
    HEADER_BYTES,
    HEADER_TABLE_SIZE,
    HEADERS,
    HIGHEST_FRAME_BYTES,
    HIGHEST_STREAM,
    INITIAL_WINDOW_SIZE,
    KIND_PLACE,
    MAX_CONCURRENT_STREAMS,
    MAX_FRAME_SIZE,
    MAX_HEADER_LIST_SIZE,
    PADDED,
    PING,
    PING_BYTES,
    PREFACE,
    RST_STREAM,
    SETTING_BYTES,
    SETTINGS,
    SETTINGS_ACK,
    WIDEST_WINDOW,
    WINDOW_UPDATE,
    frame_type,
    pack_frame,
    pack_header,
    pack_number,
    pack_settings,
    unpack_settings,
)
from agent.transport.half import (
    BodyReceived,
    ConnectionFailed,
    ErrorCode,
    PingAnswered,
    RequestStarted,
    StreamDrained,
    StreamReset,
)
from agent.transport.header_blocks import (
    EMPTY_TABLE,
    NO_TABLE,
    TABLE_BYTES,
    BlockError,
    ExcessError,
    named_literal,
)
from agent.transport.request_rules import MAX_LIST_BYTES, NO_LENGTH, is_trailer_section, read_block

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent.transport.bounds import Bounds
    from agent.transport.half import Event
    from agent.transport.request_rules import ReadBlock

# A window is replenished when half of it is used: one WINDOW_UPDATE for many frames.
_REPLENISH_BELOW: Final = (DEFAULT_WINDOW + 1) // 2 + 1
# Frames of a stream that the half reset are ignored, since the client may not know yet. So many of
# the latest such streams are remembered; a frame of an older one is a stream error again.
_REMEMBERED_RESETS: Final = 256
# `:status` is field 8 of the static table. RFC 6585 section 5.
_FIELDS_TOO_LARGE: Final = named_literal(8, b"431")
# The frames of the half.
_DATA: Final = frame_type(DATA)
_HEADERS: Final = frame_type(HEADERS, END_HEADERS)
_LAST_HEADERS: Final = frame_type(HEADERS, END_HEADERS | END_STREAM)
_PING: Final = frame_type(PING)
_PING_ACK: Final = frame_type(PING, ACK)
_GO_AWAY: Final = frame_type(GOAWAY)
_PRIORITY_BYTES: Final = 5
_GO_AWAY_BYTES: Final = 8


class _ConnectionError(Exception):
    """The client broke a rule of the connection (section 5.4.1)."""

    def __init__(self, code: ErrorCode, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class _StreamError(Exception):
    """The client broke a rule of a stream (section 5.4.2)."""

    def __init__(self, stream: int, code: ErrorCode) -> None:
        super().__init__(stream)
        self.stream = stream
        self.code = code


class _Waiting:
    """The data of a response that flow control holds back, and what follows it."""

    __slots__ = ("parts", "size", "trailers")

    def __init__(self) -> None:
        self.parts: deque[memoryview] = deque()
        self.size = 0
        self.trailers: bytes | None = None


class _Stream:
    """A stream whose response has not ended."""

    __slots__ = (
        "consumed",
        "content_left",
        "has_request_ended",
        "receive_window",
        "send_window",
        "waiting",
    )

    def __init__(self, send_window: int, content_left: int, has_request_ended: bool) -> None:  # noqa: FBT001  # a keyword costs time
        self.has_request_ended = has_request_ended
        # What content-length says is to come, or NO_LENGTH.
        self.content_left = content_left
        self.receive_window = DEFAULT_WINDOW
        # What the client may send beyond the window, once it is worth a WINDOW_UPDATE.
        self.consumed = 0
        self.send_window = send_window
        self.waiting: _Waiting | None = None


class Http2Server:
    """The server's half of one connection."""

    __slots__ = (
        "_block",
        "_block_cost",
        "_block_flags",
        "_block_stream",
        "_bounds",
        "_budget",
        "_busy",
        "_control_bytes",
        "_events",
        "_expected",
        "_has_failed",
        "_has_preface",
        "_held",
        "_held_responses",
        "_initial_window",
        "_last",
        "_last_served",
        "_max_frame",
        "_needed",
        "_now",
        "_output",
        "_owes_table_size",
        "_place",
        "_ready",
        "_receive_window",
        "_resets",
        "_room",
        "_send_window",
        "_streams",
        "_table",
        "_unsent",
    )

    def __init__(self, bounds: Bounds = DEFAULT_BOUNDS) -> None:
        self._bounds = bounds
        self._budget = FrameBudget(bounds.frames, bounds.frames_per_second)
        # Input: `_held` is the beginning of a frame, which is complete with `_needed` bytes;
        # `_place` is the place of the next frame in all bytes of the client.
        self._held = bytearray()
        self._needed = 0
        self._place = 0
        self._now = 0.0
        self._events: list[Event] = []
        self._has_preface = False
        self._has_failed = False
        # The kind and the stream that the next frame must have: SETTINGS at first (section 3.4),
        # CONTINUATION within a header block (section 6.10).
        self._expected: tuple[int, int] | None = (SETTINGS, 0)
        self._block = bytearray()
        self._block_cost = self._block_flags = self._block_stream = 0
        self._table = EMPTY_TABLE
        self._owes_table_size = False
        self._receive_window = DEFAULT_WINDOW
        # Streams: those whose response has not ended, and those whose handler has not.
        self._streams: dict[int, _Stream] = {}
        self._busy: set[int] = set()
        self._resets: dict[int, None] = {}
        self._last = 0
        self._last_served = HIGHEST_STREAM
        # Output: `_ready` are the streams with data that their own windows allow.
        self._output: list[bytes | memoryview] = [_our_settings(bounds.streams)]
        self._room = bounds.output_bytes
        self._control_bytes = 0
        self._ready: dict[int, _Waiting] = {}
        self._unsent = 0  # bytes of objects that wait, or of which a part does
        self._held_responses: dict[int, int] = {}  # how often each of them waits, by its id()
        self._send_window = self._initial_window = DEFAULT_WINDOW
        self._max_frame = DEFAULT_FRAME_BYTES

    # --- what comes -------------------------------------------------------------------------------

    def feed(self, data: bytes, now: float) -> Sequence[Event]:
        """Take bytes of the client, and return the events in them."""
        if self._has_failed:
            return ()
        self._now = now
        held = self._held
        if held:
            held += data
            if len(held) < self._needed:
                return ()
            data = bytes(held)
            held.clear()
        try:
            at = self._take_frames(data)
        except _ConnectionError as error:
            self._fail(error)
        else:
            if at < len(data):
                held += data[at:] if at else data
        return self.take_events()

    def take_events(self) -> Sequence[Event]:
        """Return the events since the last call."""
        events = self._events
        if events:
            self._events = []
        return events

    @property
    def held_bytes(self) -> int:
        """The bytes of a partial frame, of a partial header block, and of responses that wait.

        A response that waits on several streams counts once.
        """
        return len(self._held) + len(self._block) + self._unsent

    @property
    def is_mid_frame(self) -> bool:
        """Whether a frame or a header block has begun and not ended."""
        return bool(self._held or self._block_stream)

    @property
    def missing_body(self) -> int:
        """The bytes that the DATA frame under way lacks, and the next header; 0 if none is."""
        held = self._held
        if len(held) < HEADER_BYTES or held[KIND_PLACE] != DATA:
            return 0
        return self._needed - len(held) + HEADER_BYTES

    def _take_frames(self, data: bytes) -> int:
        # Returns the place behind the last complete frame.
        at, size = 0, len(data)
        if not self._has_preface:
            if not self._take_preface(data):
                return 0
            at = len(PREFACE)
        unpack, handlers = HEADER.unpack_from, self._HANDLERS
        while size - at >= HEADER_BYTES:
            high, low, kind, flags, stream = unpack(data, at)
            start = at + HEADER_BYTES
            length = high << 8 | low
            if length > DEFAULT_FRAME_BYTES:
                raise _ConnectionError(ErrorCode.FRAME_SIZE_ERROR, "a frame is too large")
            if start + length > size:
                self._needed = HEADER_BYTES + length
                return at
            stream &= HIGHEST_STREAM
            if self._expected is not None and self._expected != (kind, stream):
                raise _ConnectionError(ErrorCode.PROTOCOL_ERROR, "another frame was expected")
            at = start + length
            self._place += HEADER_BYTES + length
            try:
                if kind < len(handlers):
                    handlers[kind](self, flags, stream, data[start:at])
                else:
                    self._spend(FRAME_COST)  # section 5.5: unknown frames are ignored
            except _StreamError as error:
                self._reset_for(error)
        self._needed = HEADER_BYTES
        return at

    def _take_preface(self, data: bytes) -> bool:
        if not PREFACE.startswith(data[: len(PREFACE)]):
            raise _ConnectionError(ErrorCode.PROTOCOL_ERROR, "no HTTP/2 preface")
        if len(data) < len(PREFACE):
            self._needed = len(PREFACE)
            return False
        self._has_preface = True
        self._place = len(PREFACE)
        return True

    def _fail(self, error: _ConnectionError) -> None:
        self._has_failed = True
        self._send_go_away(self._last, error.code, error.reason)
        self._held.clear()
        self._block.clear()
        self._block_stream = self._unsent = 0
        self._streams.clear()
        self._ready.clear()
        self._held_responses.clear()
        self._events.append(ConnectionFailed(error.code, error.reason))

    def _reset_for(self, error: _StreamError) -> None:
        # Clients may open too many streams before they know the bound, and while handlers end.
        is_refused = error.code == ErrorCode.REFUSED_STREAM
        self._spend(FRAME_COST if is_refused else FAULT_COST)
        self._send_reset(error.stream, error.code)
        self._forget(error.stream)
        self._events.append(StreamReset(error.stream, error.code, by_client=False))

    def _spend(self, cost: int) -> None:
        if not self._budget.spend(cost, self._now):
            raise _ConnectionError(ErrorCode.ENHANCE_YOUR_CALM, "too many frames without a request")

    # --- frames of requests -----------------------------------------------------------------------

    def _on_headers(self, flags: int, stream: int, payload: bytes) -> None:
        if not stream & 1:
            raise _ConnectionError(ErrorCode.PROTOCOL_ERROR, "a stream is not the client's")
        if len(payload) > self._bounds.block_bytes - HEADER_BYTES:
            raise _block_too_large()
        if flags & PADDED:
            payload = _unpadded(payload)
        if flags & HAS_PRIORITY:
            if len(payload) < _PRIORITY_BYTES:
                raise _ConnectionError(ErrorCode.FRAME_SIZE_ERROR, "HEADERS has no priority")
            if _dependency(payload) == stream:
                raise _ConnectionError(ErrorCode.PROTOCOL_ERROR, "a stream depends on itself")
            payload = payload[_PRIORITY_BYTES:]
        if flags & END_HEADERS:
            self._take_block(stream, payload, ended=bool(flags & END_STREAM))
            return
        self._block += payload
        self._block_stream, self._block_flags = stream, flags
        self._block_cost = HEADER_BYTES + len(payload)
        self._expected = (CONTINUATION, stream)

    def _on_continuation(self, flags: int, stream: int, payload: bytes) -> None:
        if not self._block_stream:
            raise _ConnectionError(ErrorCode.PROTOCOL_ERROR, "CONTINUATION continues nothing")
        self._spend(FRAME_COST)
        self._block_cost += HEADER_BYTES + len(payload)
        if self._block_cost > self._bounds.block_bytes:
            raise _block_too_large()
        self._block += payload
        if flags & END_HEADERS:
            block = bytes(self._block)
            self._block.clear()
            self._block_stream, self._expected = 0, None
            self._take_block(stream, block, ended=bool(self._block_flags & END_STREAM))

    def _take_block(self, stream: int, block: bytes, *, ended: bool) -> None:
        # The table changes by every block, even if the stream is refused or ignored (section 4.3).
        try:
            read = read_block(self._table, block)
        except BlockError as error:
            raise _ConnectionError(ErrorCode.COMPRESSION_ERROR, str(error)) from None
        except ExcessError as error:
            raise _ConnectionError(ErrorCode.ENHANCE_YOUR_CALM, str(error)) from None
        self._table = read.table
        if stream <= self._last:
            self._take_trailers(stream, read, ended=ended)
            return
        self._last = stream
        if stream > self._last_served:
            self._spend(FRAME_COST)
            return
        bounds = self._bounds
        if len(self._streams) >= bounds.streams or len(self._busy) >= bounds.handlers:
            raise _StreamError(stream, ErrorCode.REFUSED_STREAM)
        if read.is_too_large:
            self._refuse_fields(stream, ended=ended)
            return
        if read.fault or (ended and read.content_length > 0):
            raise _StreamError(stream, ErrorCode.PROTOCOL_ERROR)
        self._budget.tokens += EARNED_BY_REQUEST
        self._streams[stream] = _Stream(self._initial_window, read.content_length, ended)
        self._busy.add(stream)
        self._events.append(RequestStarted(stream, read.headers, ended))

    def _refuse_fields(self, stream: int, *, ended: bool) -> None:
        # Section 10.5.1: a client can tell a user about this status, and not about a reset.
        self._spend(FAULT_COST)
        block = _FIELDS_TOO_LARGE
        if self._owes_table_size:
            block = self._with_table_size(block)
        self._control(pack_frame(_LAST_HEADERS, stream, block))
        if not ended:
            self._send_reset(stream, ErrorCode.NO_ERROR)
        self._events.append(StreamReset(stream, ErrorCode.ENHANCE_YOUR_CALM, by_client=False))

    def _take_trailers(self, number: int, read: ReadBlock, *, ended: bool) -> None:
        stream = self._streams.get(number)
        if stream is None:
            if number in self._resets or number > self._last_served:
                self._spend(FRAME_COST)
                return
            raise _ConnectionError(ErrorCode.STREAM_CLOSED, "HEADERS on a closed stream")
        if stream.has_request_ended:
            raise _StreamError(number, ErrorCode.STREAM_CLOSED)
        is_good = ended and not read.is_too_large and is_trailer_section(read.headers.fields)
        if not is_good or stream.content_left > 0:
            raise _StreamError(number, ErrorCode.PROTOCOL_ERROR)
        stream.has_request_ended = True
        self._events.append(BodyReceived(number, b"", ended=True))

    def _on_data(self, flags: int, number: int, payload: bytes) -> None:
        stream = self._streams.get(number)
        length = len(payload)
        window = self._receive_window = self._receive_window - length
        if window < _REPLENISH_BELOW:
            self._replenish(window)
        if flags & PADDED:  # an error of the connection, whatever the stream's state
            payload = _unpadded(payload)
        if stream is None or stream.has_request_ended:
            self._take_late_data(number)
            return
        stream.receive_window -= length
        if stream.receive_window < 0:
            raise _StreamError(number, ErrorCode.FLOW_CONTROL_ERROR)
        if flags & PADDED:
            self.consume(number, length - len(payload))
        ended = bool(flags & END_STREAM)
        if ended:
            stream.has_request_ended = True
        elif not payload:
            self._spend(FRAME_COST)
        if stream.content_left != NO_LENGTH:
            stream.content_left -= len(payload)
            if stream.content_left < 0 or (ended and stream.content_left):
                raise _StreamError(number, ErrorCode.PROTOCOL_ERROR)
        self._events.append(BodyReceived(number, payload, ended))

    def _take_late_data(self, number: int) -> None:
        # Data of a stream that takes none. It counts in the connection's window (section 6.9).
        self._check_not_idle(number)
        if number in self._streams or not (number in self._resets or number > self._last_served):
            raise _StreamError(number, ErrorCode.STREAM_CLOSED)
        self._spend(FRAME_COST)

    def _replenish(self, window: int) -> None:
        # The window is wider than a frame whenever one begins: no frame can exceed it.
        self._control(pack_number(WINDOW_UPDATE, 0, DEFAULT_WINDOW - window))
        self._receive_window = DEFAULT_WINDOW

    def _check_not_idle(self, stream: int) -> None:
        # Section 5.1: of a stream that nobody opened, a client sends HEADERS or PRIORITY only.
        if stream > self._last or not stream & 1:
            raise _ConnectionError(ErrorCode.PROTOCOL_ERROR, "a frame of a stream that is not open")

    def _on_rst_stream(self, _flags: int, stream: int, payload: bytes) -> None:
        _check_size("RST_STREAM", payload, 4)
        self._check_not_idle(stream)
        if stream not in self._streams:
            self._spend(FRAME_COST)
            return
        self._spend(RESET_COST)
        self._forget(stream)
        self._events.append(StreamReset(stream, int.from_bytes(payload, "big"), by_client=True))

    # --- frames of the connection -----------------------------------------------------------------

    def _on_priority(self, _flags: int, stream: int, payload: bytes) -> None:
        # Deprecated (section 5.3.2): checked and ignored.
        self._spend(FRAME_COST)
        if not stream:
            raise _ConnectionError(ErrorCode.PROTOCOL_ERROR, "PRIORITY is of no stream")
        if len(payload) != _PRIORITY_BYTES:
            self._fault(stream, ErrorCode.FRAME_SIZE_ERROR, "PRIORITY has a wrong size")
        if _dependency(payload) == stream:
            self._fault(stream, ErrorCode.PROTOCOL_ERROR, "a stream depends on itself")

    def _fault(self, stream: int, code: ErrorCode, reason: str) -> None:
        # An idle stream cannot be reset (section 6.4).
        if stream > self._last or not stream & 1:
            raise _ConnectionError(code, reason)
        raise _StreamError(stream, code)

    def _on_settings(self, flags: int, stream: int, payload: bytes) -> None:
        if stream:
            raise _ConnectionError(ErrorCode.PROTOCOL_ERROR, "SETTINGS is of a stream")
        if flags & ACK:
            _check_size("SETTINGS", payload, 0)
            if self._expected is not None:
                raise _ConnectionError(ErrorCode.PROTOCOL_ERROR, "another frame was expected")
            self._spend(FRAME_COST)
            return
        self._expected = None
        # INITIAL_WINDOW_SIZE costs time for each stream: each setting counts.
        self._spend(FRAME_COST + len(payload) // SETTING_BYTES)
        if len(payload) % SETTING_BYTES:
            raise _ConnectionError(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS has a wrong size")
        for setting, value in unpack_settings(payload):
            self._set(setting, value)
        self._control(SETTINGS_ACK)

    def _set(self, setting: int, value: int) -> None:
        if setting == INITIAL_WINDOW_SIZE:
            self._set_initial_window(value)
        elif setting == MAX_FRAME_SIZE:
            if not DEFAULT_FRAME_BYTES <= value <= HIGHEST_FRAME_BYTES:
                raise _ConnectionError(ErrorCode.PROTOCOL_ERROR, "MAX_FRAME_SIZE is out of range")
            self._max_frame = value
        elif setting == HEADER_TABLE_SIZE:
            self._owes_table_size |= value < TABLE_BYTES
        elif setting == ENABLE_PUSH and value > 1:
            raise _ConnectionError(ErrorCode.PROTOCOL_ERROR, "ENABLE_PUSH is neither 0 nor 1")

    def _set_initial_window(self, window: int) -> None:
        if window > WIDEST_WINDOW:
            raise _window_too_wide()
        change, self._initial_window = window - self._initial_window, window
        for number, stream in self._streams.items():
            if stream.send_window + change > WIDEST_WINDOW:
                raise _window_too_wide()
            self._widen(number, stream, change)

    def _widen(self, number: int, stream: _Stream, change: int) -> None:
        stream.send_window += change  # may become negative (section 6.9.2)
        if stream.waiting is not None:
            if stream.send_window > 0:
                self._ready[number] = stream.waiting
            else:
                self._ready.pop(number, None)

    def _on_push_promise(self, _flags: int, _stream: int, _payload: bytes) -> None:
        raise _ConnectionError(ErrorCode.PROTOCOL_ERROR, "a client pushes")

    def _on_ping(self, flags: int, stream: int, payload: bytes) -> None:
        if stream:
            raise _ConnectionError(ErrorCode.PROTOCOL_ERROR, "PING is of a stream")
        _check_size("PING", payload, PING_BYTES)
        self._spend(FRAME_COST)
        if flags & ACK:
            offset = self._place - HEADER_BYTES - PING_BYTES
            self._events.append(PingAnswered(payload, offset))
        else:
            self._control(pack_frame(_PING_ACK, 0, payload))

    def _on_goaway(self, _flags: int, stream: int, payload: bytes) -> None:
        # It names streams of the server, which has none: the client goes on, or closes.
        self._spend(FRAME_COST)
        if stream:
            raise _ConnectionError(ErrorCode.PROTOCOL_ERROR, "GOAWAY is of a stream")
        if len(payload) < _GO_AWAY_BYTES:
            raise _ConnectionError(ErrorCode.FRAME_SIZE_ERROR, "GOAWAY has a wrong size")

    def _on_window_update(self, _flags: int, number: int, payload: bytes) -> None:
        _check_size("WINDOW_UPDATE", payload, 4)
        self._spend(FRAME_COST)
        more = int.from_bytes(payload, "big") & WIDEST_WINDOW
        if number:
            self._check_not_idle(number)
            stream = self._streams.get(number)
            if stream is None:
                return
            if not more:
                raise _StreamError(number, ErrorCode.PROTOCOL_ERROR)
            if stream.send_window + more > WIDEST_WINDOW:
                raise _StreamError(number, ErrorCode.FLOW_CONTROL_ERROR)
            self._widen(number, stream, more)
            return
        if not more:
            raise _ConnectionError(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE widens nothing")
        self._send_window += more
        if self._send_window > WIDEST_WINDOW:
            raise _window_too_wide()

    _HANDLERS: Final = (
        _on_data,
        _on_headers,
        _on_priority,
        _on_rst_stream,
        _on_settings,
        _on_push_promise,
        _on_ping,
        _on_goaway,
        _on_window_update,
        _on_continuation,
    )
    """By the kind of the frame."""

    # --- what goes --------------------------------------------------------------------------------

    def take_output(self) -> bytes:
        """Return the next bytes to send, and forget them; empty if there are none now."""
        if self._ready:
            self._send_waiting()
        output = self._output
        if not output:
            return b""
        self._output = []
        self._room = self._bounds.output_bytes
        self._control_bytes = 0
        return b"".join(output)

    def send_headers(self, stream: int, block: bytes, *, end: bool = False) -> None:
        """Send a header block; `end` ends the response (trailers-only)."""
        if end:
            self.send_trailers(stream, block)
        elif stream in self._streams:
            if self._owes_table_size:
                block = self._with_table_size(block)
            self._output.append(pack_header(len(block), _HEADERS, stream))
            self._output.append(block)

    def send_data(self, stream: int, data: bytes) -> bool:
        """Send data as flow control allows, and keep the rest. Return whether nothing waits."""
        state = self._streams.get(stream)
        if state is None:
            return True
        length = len(data)
        self._budget.tokens += EARNED_BY_RESPONSE + length // BYTES_THAT_EARN
        if (
            state.waiting is None
            and length <= state.send_window
            and length <= self._send_window
            and length <= self._max_frame
            and length <= self._room
        ):
            self._send_part(stream, state, data)
            return True
        if state.waiting is None:
            state.waiting = _Waiting()
        state.waiting.parts.append(memoryview(data))
        state.waiting.size += length
        self._hold(data)
        if state.send_window > 0:
            self._ready[stream] = state.waiting
        return False

    def send_trailers(self, stream: int, block: bytes) -> None:
        """End the response with trailers, behind all data that waits."""
        state = self._streams.get(stream)
        if state is None:
            return
        if state.waiting is not None:
            state.waiting.trailers = block
            return
        if self._owes_table_size:
            block = self._with_table_size(block)
        self._output.append(pack_header(len(block), _LAST_HEADERS, stream))
        self._output.append(block)
        del self._streams[stream]
        if not state.has_request_ended:
            # Section 8.1: the response does not need the rest of the request.
            self._send_reset(stream, ErrorCode.NO_ERROR)

    def _with_table_size(self, block: bytes) -> bytes:
        # RFC 7541 section 4.2: an encoder says that it follows a smaller table, even if it uses
        # none. nghttp2 and hpack refuse a block without it. A table of nothing needs it once.
        self._owes_table_size = False
        return NO_TABLE + block

    def consume(self, stream: int, count: int) -> None:
        """Let the client send so many bytes more on a stream."""
        state = self._streams.get(stream)
        if state is None or state.has_request_ended:
            return
        state.consumed += count
        if state.consumed >= DEFAULT_WINDOW - _REPLENISH_BELOW:
            self._control(pack_number(WINDOW_UPDATE, stream, state.consumed))
            state.receive_window += state.consumed
            state.consumed = 0

    def reset_stream(self, stream: int, code: ErrorCode) -> None:
        """End a stream at once. Data that waits is dropped."""
        if stream in self._streams:
            self._send_reset(stream, code)
            self._forget(stream)

    def release(self, stream: int) -> None:
        """Stop counting a stream against the bound of handlers: its handler has ended."""
        self._busy.discard(stream)

    def ping(self, payload: bytes) -> None:
        """Send a PING with these eight bytes."""
        self._output.append(pack_frame(_PING, 0, payload))

    def go_away(
        self, *, last: bool, code: ErrorCode = ErrorCode.NO_ERROR, reason: str = ""
    ) -> None:
        """Send GOAWAY. With `last`, streams that the client opens from now on are ignored."""
        if last:
            self._last_served = min(self._last, self._last_served)
        self._send_go_away(self._last_served, code, reason)

    def _send_part(self, number: int, stream: _Stream, data: bytes | memoryview) -> None:
        length = len(data)
        stream.send_window -= length
        self._send_window -= length
        self._room -= length
        self._output.append(pack_header(length, _DATA, number))
        self._output.append(data)

    def _send_waiting(self) -> None:
        # A frame of each stream in turn, so that a large response does not hold up the others.
        ready = self._ready
        while ready and self._room > 0 and self._send_window > 0:
            number = next(iter(ready))
            waiting = ready.pop(number)
            stream = self._streams[number]
            self._send_next(number, stream, waiting)
            if not waiting.size:
                stream.waiting = None
                if waiting.trailers is not None:
                    self.send_trailers(number, waiting.trailers)
                self._events.append(StreamDrained(number))
            elif stream.send_window > 0:
                ready[number] = waiting

    def _send_next(self, number: int, stream: _Stream, waiting: _Waiting) -> None:
        part = waiting.parts.popleft()
        limit = min(stream.send_window, self._send_window, self._max_frame, self._room)
        if len(part) > limit:
            waiting.parts.appendleft(part[limit:])
            part = part[:limit]
        else:
            self._let_go(part)
        waiting.size -= len(part)
        self._send_part(number, stream, part)

    def _control(self, frame: bytes) -> None:
        # A frame that the client made the half send.
        self._control_bytes += len(frame)
        if self._control_bytes > self._bounds.control_bytes:
            raise _ConnectionError(ErrorCode.ENHANCE_YOUR_CALM, "the client reads no answers")
        self._output.append(frame)

    def _send_reset(self, stream: int, code: ErrorCode) -> None:
        resets = self._resets
        resets[stream] = None
        if len(resets) > _REMEMBERED_RESETS:
            del resets[next(iter(resets))]
        self._output.append(pack_number(RST_STREAM, stream, code))

    def _forget(self, number: int) -> None:
        stream = self._streams.pop(number, None)
        if stream is not None and stream.waiting is not None:
            for part in stream.waiting.parts:
                self._let_go(part)
            self._ready.pop(number, None)

    def _hold(self, data: bytes) -> None:
        # Streams share the object of a large response: it takes its memory once. A part of it keeps
        # all of it in memory.
        held = self._held_responses
        uses = held.get(id(data), 0)
        if not uses:
            self._unsent += len(data)
        held[id(data)] = uses + 1

    def _let_go(self, part: memoryview) -> None:
        data, held = cast("bytes", part.obj), self._held_responses
        uses = held.pop(id(data)) - 1
        if uses:
            held[id(data)] = uses
        else:
            self._unsent -= len(data)

    def _send_go_away(self, last: int, code: ErrorCode, reason: str) -> None:
        payload = last.to_bytes(4, "big") + code.to_bytes(4, "big") + reason.encode()
        self._output.append(pack_frame(_GO_AWAY, 0, payload))


@lru_cache(maxsize=8)
def _our_settings(streams: int) -> bytes:
    return pack_settings({MAX_CONCURRENT_STREAMS: streams, MAX_HEADER_LIST_SIZE: MAX_LIST_BYTES})


def _unpadded(payload: bytes) -> bytes:
    # Section 6.1.
    if not payload or payload[0] >= len(payload):
        raise _ConnectionError(ErrorCode.PROTOCOL_ERROR, "a frame is all padding")
    return payload[1 : len(payload) - payload[0]]


def _dependency(priority: bytes) -> int:
    return int.from_bytes(priority[:4], "big") & HIGHEST_STREAM


def _check_size(kind: str, payload: bytes, size: int) -> None:
    if len(payload) != size:
        raise _ConnectionError(ErrorCode.FRAME_SIZE_ERROR, f"{kind} has a wrong size")


def _block_too_large() -> _ConnectionError:
    return _ConnectionError(ErrorCode.ENHANCE_YOUR_CALM, "a header block is too large")


def _window_too_wide() -> _ConnectionError:
    return _ConnectionError(ErrorCode.FLOW_CONTROL_ERROR, "a window is too wide")
