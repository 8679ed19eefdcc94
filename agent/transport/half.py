"""The server's half of one HTTP/2 connection: the Protocol that the transport uses, and its events.

The half does no I/O (RFC 9113). `feed` takes the client's bytes and returns events; commands add
bytes to the output, and `take_output` returns them. `agent.transport.http2_server` has the half
that serves. The tests run the whole transport over the h2 library as well, behind the same
Protocol.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence


class ErrorCode(IntEnum):
    """Why a stream or a connection ended (RFC 9113 section 7)."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    SETTINGS_TIMEOUT = 4
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    CONNECT_ERROR = 10
    ENHANCE_YOUR_CALM = 11
    INADEQUATE_SECURITY = 12
    HTTP_1_1_REQUIRED = 13


@dataclass(frozen=True, slots=True, eq=False)
class Headers:
    """The decoded fields of a header block, in their order.

    Equal blocks mostly share one object: the code above keeps what it derived by identity.
    """

    fields: tuple[tuple[bytes, bytes], ...]


class RequestStarted(NamedTuple):
    """The client opened a stream with a valid header block. CONNECT has no `:path`."""

    stream: int
    headers: Headers
    ended: bool
    """Whether the request has no body."""


class BodyReceived(NamedTuple):
    """A part of a request's body; empty for a mere end."""

    stream: int
    data: bytes
    ended: bool


class StreamReset(NamedTuple):
    """A stream ended early: the client reset it, or the client broke a rule and the half did.

    The half also reports the streams that it refused before a RequestStarted.
    """

    stream: int
    code: int
    by_client: bool


class StreamDrained(NamedTuple):
    """Flow control has let all data of a stream pass that was waiting for it."""

    stream: int


class PingAnswered(NamedTuple):
    """The client answered a PING."""

    payload: bytes
    offset: int
    """The place of the answer's first byte, its frame header, in all bytes of the client."""


class ConnectionFailed(NamedTuple):
    """The client broke a rule of the connection. GOAWAY is in the output; no event follows."""

    code: ErrorCode
    reason: str
    """A constant text: nothing that the client sent."""


Event: TypeAlias = (
    RequestStarted | BodyReceived | StreamReset | StreamDrained | PingAnswered | ConnectionFailed
)


class Half(Protocol):
    """The server's half of one connection."""

    def feed(self, data: bytes, now: float) -> Sequence[Event]:
        """Take bytes of the client, and return the events in them.

        Args:
            data: the next bytes, cut anywhere.
            now: seconds of the event loop, for the budgets of frames that carry no request.
        """
        ...

    def take_output(self) -> bytes:
        """Return the next bytes to send, and forget them; empty if there are none now.

        One output has a bounded size: data beyond it waits in the half, where streams share their
        bytes. Take the next output when the socket has taken this one.
        """
        ...

    def take_events(self) -> Sequence[Event]:
        """Return the events that `take_output` caused: StreamDrained."""
        ...

    @property
    def held_bytes(self) -> int:
        """The bytes held for this client: partial frames, header fragments, unsent data."""
        ...

    @property
    def is_mid_frame(self) -> bool:
        """Whether a frame or a header block has begun and not ended."""
        ...

    @property
    def missing_body(self) -> int:
        """The bytes to read so that the DATA frame under way is complete; 0 if none is.

        No request begins in so many bytes. The header of the next frame is counted as well.
        """
        ...

    def send_headers(self, stream: int, block: bytes, *, end: bool = False) -> None:
        """Send a header block; `end` ends the response (trailers-only)."""
        ...

    def send_data(self, stream: int, data: bytes) -> bool:
        """Send data as flow control allows, and keep the rest.

        Returns:
            Whether nothing of the stream waits. If something does, StreamDrained follows from
            `take_events`.
        """
        ...

    def send_trailers(self, stream: int, block: bytes) -> None:
        """End the response with trailers, behind all data that waits."""
        ...

    def consume(self, stream: int, count: int) -> None:
        """Let the client send so many bytes more on a stream.

        A message may be larger than the window of 65,535 bytes: its reader calls this for each
        part that fits below its own bound.
        """
        ...

    def reset_stream(self, stream: int, code: ErrorCode) -> None:
        """End a stream at once. Data that waits is dropped."""
        ...

    def release(self, stream: int) -> None:
        """Stop counting a stream against the bound of handlers: its handler has ended."""
        ...

    def ping(self, payload: bytes) -> None:
        """Send a PING with these eight bytes."""
        ...

    def go_away(
        self, *, last: bool, code: ErrorCode = ErrorCode.NO_ERROR, reason: str = ""
    ) -> None:
        """Send GOAWAY. `reason` is a text for people (section 6.8).

        `last` is False for the first step of a graceful stop, which names the highest possible
        stream (RFC 9113 section 6.8), and True for the second: later streams are ignored.
        """
        ...
