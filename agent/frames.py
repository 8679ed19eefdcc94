"""HTTP/2 frames as they pass by (RFC 9113): where a PING may be put in, and which answer is ours.

Nothing is changed but that: one frame more towards the client, and one less towards the server.
Whatever the bytes are, valid or not, all others pass in their order; only the beginning of a frame
that is still incomplete is held back until the rest of it has come. The one thing that does not
pass is a header block without end, which the server would keep in memory.
"""

from __future__ import annotations

from agent.errors import PeerError

# RFC 9113 section 3.4: what a client sends before its first frame.
CLIENT_PREFACE_BYTES = 24
# Sections 4.1 and 6.7.
HEADER_BYTES = 9
PAYLOAD_BYTES = 8
PING_BYTES = HEADER_BYTES + PAYLOAD_BYTES
# As much as the server takes in the end, with the headers of the frames: a call of a workload has
# some 200 bytes.
MAX_HEADER_BLOCK_BYTES = 16 * 1024

_HEADERS, _PUSH_PROMISE, _PING, _CONTINUATION = 1, 5, 6, 9
_ACK, _END_HEADERS = 0x1, 0x4
_PING_HEADER = bytes([0, 0, PAYLOAD_BYTES, _PING, 0, 0, 0, 0, 0])
_PING_ACK_START = bytes([0, 0, PAYLOAD_BYTES, _PING])


def ping(payload: bytes) -> bytes:
    """A PING frame. The other side must send the same eight bytes back (section 6.7).

    Raises:
        ValueError: the payload has not eight bytes.
    """
    if len(payload) != PAYLOAD_BYTES:
        raise ValueError(f"a PING carries {PAYLOAD_BYTES} bytes, not {len(payload)}")
    return _PING_HEADER + payload


class _Cutter:
    """Finds where frames begin in a stream that arrives in any pieces."""

    def __init__(self, preface_bytes: int) -> None:
        self._ahead = preface_bytes
        """How many bytes of what comes next belong to what has begun already."""
        self._held = b""

    @property
    def between_frames(self) -> bool:
        """Whether all that was handed out so far ends with the end of a frame."""
        return self._ahead == 0

    def cut(self, chunk: bytes) -> tuple[bytes, list[int]]:
        """The bytes that may pass now, and where in them frames begin.

        A header is never cut in two, nor is a PING.
        """
        data = self._held + chunk
        begins = []
        at = self._ahead
        while at + HEADER_BYTES <= len(data):
            if at + PING_BYTES > len(data) and data.startswith(_PING_ACK_START, at):
                break
            begins.append(at)
            at += HEADER_BYTES + int.from_bytes(data[at : at + 3], "big")
        passing = min(at, len(data))
        self._ahead = at - passing
        self._held = data[passing:]
        return data[:passing], begins


class HeaderBlockError(PeerError):
    """A client sends headers without end."""


class ClientFrames:
    """Client to server: takes out the answers to our own PINGs, and those only.

    `requests` is how many header blocks have begun: each is a request, or one of the trailers that
    no client of ours sends.
    """

    def __init__(self) -> None:
        self.requests = 0
        self._cutter = _Cutter(CLIENT_PREFACE_BYTES)
        self._block_bytes = 0
        self._awaited: set[bytes] = set()
        self._answered: list[bytes] = []

    def expect(self, payload: bytes) -> None:
        """Take out the answer with this payload when it comes."""
        self._awaited.add(payload)

    def forget(self, payload: bytes) -> None:
        """Expect it no more."""
        self._awaited.discard(payload)

    def answered(self) -> list[bytes]:
        """The payloads that were answered since this was last asked."""
        answered, self._answered = self._answered, []
        return answered

    def feed(self, chunk: bytes) -> bytes:
        """What of the stream passes on.

        Raises:
            HeaderBlockError: there are too many bytes of headers in one block.
        """
        data, begins = self._cutter.cut(chunk)
        for at in begins:
            self._look_at_headers(data, at)
        if not self._awaited:
            return data
        kept, start = [], 0
        for at in begins:
            payload = data[at + HEADER_BYTES : at + PING_BYTES]
            if payload in self._awaited and _is_ping_ack(data, at):
                self._awaited.discard(payload)
                self._answered.append(payload)
                kept.append(data[start:at])
                start = at + PING_BYTES
        return b"".join([*kept, data[start:]])

    def _look_at_headers(self, data: bytes, at: int) -> None:
        kind = data[at + 3]
        if kind == _HEADERS:
            self.requests += 1
            self._block_bytes = 0
        elif kind != _CONTINUATION:
            return
        # The frames' own headers count, so that there is an end to empty frames too.
        self._block_bytes += HEADER_BYTES + int.from_bytes(data[at : at + 3], "big")
        if self._block_bytes > MAX_HEADER_BLOCK_BYTES:
            raise HeaderBlockError(f"headers of more than {MAX_HEADER_BLOCK_BYTES} bytes")


class PingInsertion:
    """Server to client: puts PINGs between frames, where the standard allows one."""

    def __init__(self) -> None:
        self._cutter = _Cutter(0)
        self._waiting: list[bytes] = []
        # The server's first frame must be SETTINGS (section 3.4), and nothing may come between the
        # frames of one header block (section 4.3).
        self._open = False

    def insert(self, payload: bytes) -> bytes:
        """What to send at once; nothing if the PING has to wait for the end of a frame."""
        self._waiting.append(ping(payload))
        return self._release() if self._cutter.between_frames else b""

    def feed(self, chunk: bytes) -> bytes:
        """The stream, with what was waiting put in."""
        data, begins = self._cutter.cut(chunk)
        parts, start = [], 0
        for at in begins:
            if self._waiting:
                parts += [data[start:at], self._release()]
                start = at
            self._open = data[at + 3] not in {_HEADERS, _PUSH_PROMISE, _CONTINUATION} or bool(
                data[at + 4] & _END_HEADERS
            )
        parts.append(data[start:])
        if self._waiting and self._cutter.between_frames:
            parts.append(self._release())
        return b"".join(parts)

    def _release(self) -> bytes:
        if not self._open:
            return b""
        released = b"".join(self._waiting)
        self._waiting.clear()
        return released


def _is_ping_ack(data: bytes, at: int) -> bool:
    return data.startswith(_PING_ACK_START, at) and bool(data[at + 4] & _ACK)
