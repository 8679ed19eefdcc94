"""Bounds of an HTTP/2 half: how much a client may send that is no request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

MAX_CONCURRENT_STREAMS: Final = 100
# A client cancels streams and opens as many in one write (hyper does, and reports a refusal as an
# error). The handlers of the cancelled streams end a moment later.
MAX_HANDLERS: Final = 2 * MAX_CONCURRENT_STREAMS
# A workload's call has some 200 bytes. The frame headers count, so that empty frames have an end.
MAX_BLOCK_BYTES: Final = 8 * 1024
# Answers to PING and SETTINGS, RST_STREAM and WINDOW_UPDATE that the client leaves in the socket.
MAX_CONTROL_BYTES: Final = 16 * 1024
# The data that one take_output returns: some four frames, and less than a socket's buffer holds.
OUTPUT_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """The bounds of one connection."""

    streams: int = MAX_CONCURRENT_STREAMS
    handlers: int = MAX_HANDLERS
    """Streams, open or not, whose handlers run."""
    block_bytes: int = MAX_BLOCK_BYTES
    control_bytes: int = MAX_CONTROL_BYTES
    output_bytes: int = OUTPUT_BYTES
    frames: int = 2000
    """Frames without a request that a client may send at once; see `FrameBudget`."""
    frames_per_second: float = 200


DEFAULT_BOUNDS: Final = Bounds()

# The costs of frames and of resets, in frames of the budget.
FRAME_COST: Final = 1
# A request may come with an update of each window, a PING and an answer to one.
EARNED_BY_REQUEST: Final = 4
# A stream that its client resets before the response has ended (Rapid Reset): with its request, it
# costs one frame. A client that lets 100 calls time out a second stays below the budget.
RESET_COST: Final = EARNED_BY_REQUEST + 1
# A stream that the half resets for a broken rule (MadeYouReset). No client library breaks one.
FAULT_COST: Final = 2 * RESET_COST
# A response may be followed by updates of both windows, and by a PING that measures the bandwidth.
EARNED_BY_RESPONSE: Final = 4
# Large responses are followed by more of them. Clients update windows for some 16 KiB at a time.
BYTES_THAT_EARN: Final = 4096


class FrameBudget:
    """A token bucket of the frames that carry no request: time, requests and responses fill it.

    Go, Java, Node and C++ clients stay far below it: they send a handful of these frames for each
    call. A client that keeps a connection alive may send a PING every five milliseconds.
    """

    __slots__ = ("_at", "_most", "_per_second", "tokens")

    def __init__(self, most: float, per_second: float) -> None:
        self._most, self._per_second = most, per_second
        self._at = 0.0
        self.tokens = most
        """Earned tokens are added here. The bound is applied when tokens are spent."""

    def spend(self, cost: float, now: float) -> bool:
        """Take tokens, and return whether there were enough."""
        filled = self.tokens + max(0.0, now - self._at) * self._per_second
        self._at = now
        self.tokens = min(self._most, filled) - cost
        return self.tokens >= 0
