"""gRPC over HTTP/2 as a server applies it: requests, messages, and the end of a response.

Sources: PROTOCOL-HTTP2.md, compression.md and statuscodes.md in the folder doc of grpc/grpc. A
request whose header block breaks a rule has a `Refusal`, which is made once for equal blocks.

The document names no status for a request without `te`, without POST or with a malformed timeout.
These get INVALID_ARGUMENT: the same request fails again.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import unquote_to_bytes

from agent.errors import ResponseSizeError
from agent.transport.half import ErrorCode, Headers
from agent.transport.header_blocks import indexed, literal, named_literal
from agent.transport.service import StatusCode, StatusError

PREFIX_BYTES = 5
"""The bytes in front of each message: the compressed flag and the length."""

GRPC_HTTP_STATUS = 200
"""The status of HTTP of all responses of gRPC, errors included."""

# gRPC clients accept this much by default.
RESPONSE_BYTES = 4 * 1024 * 1024
# Clients may limit all trailers to 8 KiB, and percent-encoding triples most characters.
DETAILS_BYTES = 6 * 1024
# Clients choose the path; log, audit and metrics get this much of it.
PATH_CHARS = 256
# CONNECT has no path, and neither has a header block that was not accepted.
NO_PATH = "(none)"
# Parsed header blocks, which hold on to their fields: at most 8 KiB of text each and 64 fields of
# some 200 bytes, so 5 MiB in all.
KNOWN_REQUESTS = 256

# A field in memory, beside its text: two objects of bytes and a tuple.
FIELD_BYTES = 130
# A call of a workload has a dozen fields. The quota of calls bounds that much of each.
USUAL_HEADER_BYTES = 2048

_SECONDS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_TIMEOUT = re.compile(rb"([0-9]{1,8})([HMSmun])")
# Behind the prefix may follow a message format. Anything else is another protocol, gRPC-Web for
# instance.
_CONTENT_TYPE = re.compile(rb"application/grpc(?:[+;].*)?", re.IGNORECASE)
_TO_PERCENT = re.compile(rb"[^\x20-\x24\x26-\x7e]")
_BROKEN_PERCENT = re.compile(rb"%[0-9A-F]?$")


@dataclass(frozen=True, slots=True)
class Refusal:
    """The end of a call that breaks a rule of the protocol."""

    code: StatusCode
    details: str
    http_status: int = GRPC_HTTP_STATUS
    metadata: tuple[tuple[str, str], ...] = ()

    def error(self) -> StatusError:
        """Make the exception of this refusal. A shared one would collect tracebacks."""
        return StatusError(self.code, self.details, self.metadata)


@dataclass(frozen=True, slots=True)
class Request:
    """The header block of a request."""

    headers: Headers
    path: bytes
    printable_path: str
    """The path for log, audit and metrics: short, in ASCII, without control characters."""
    timeout: float = math.inf
    """The seconds that the client gives the call."""
    refusal: Refusal | None = None
    unusual_bytes: int = 0
    """The bytes that the fields take in memory, beyond USUAL_HEADER_BYTES."""


NO_REQUEST = Request(Headers(()), b"", NO_PATH)
"""Stands for a request whose header block was not accepted."""


# Equal header blocks mostly share one Headers object: it is compared by identity.
@lru_cache(maxsize=KNOWN_REQUESTS)
def read_request(headers: Headers) -> Request:
    """Read the header block of a request, of which HTTP/2's own rules were checked before."""
    fields = dict(headers.fields)
    path = fields.get(b":path", b"")
    timeout, refusal = math.inf, _refusal(fields)
    if refusal is None and (written := fields.get(b"grpc-timeout")) is not None:
        try:
            timeout = parse_timeout(written)
        except ValueError as error:
            refusal = Refusal(StatusCode.INVALID_ARGUMENT, str(error))
    size = sum(len(name) + len(value) + FIELD_BYTES for name, value in headers.fields)
    unusual = max(0, size - USUAL_HEADER_BYTES)
    return Request(headers, path, printable(path), timeout, refusal, unusual)


@lru_cache(maxsize=KNOWN_REQUESTS)
def metadata(headers: Headers, name: str) -> tuple[str, ...]:
    """Return the values of a field in their order; none if it is missing."""
    wanted = name.encode()
    return tuple(value.decode("latin-1") for key, value in headers.fields if key == wanted)


def parse_timeout(written: bytes) -> float:
    """Return the seconds of a `grpc-timeout`.

    The document allows only positive values, and clients send 0 when their deadline has passed.

    Raises:
        ValueError: it is malformed.
    """
    match = _TIMEOUT.fullmatch(written)
    if match is None:
        raise ValueError("grpc-timeout must be up to 8 digits and one of the letters HMSmun")
    return int(match[1]) * _SECONDS[match[2]]


def printable(path: bytes) -> str:
    """Return the first PATH_CHARS characters of a path; others than printable ASCII are escaped."""
    shown = path[:PATH_CHARS].decode("latin-1").encode("unicode_escape").decode()[:PATH_CHARS]
    return shown or NO_PATH


def _refusal(fields: dict[bytes, bytes]) -> Refusal | None:
    if fields.get(b":method") != b"POST":
        return Refusal(StatusCode.INVALID_ARGUMENT, "gRPC calls have the method POST", 405)
    if not _CONTENT_TYPE.fullmatch(fields.get(b"content-type", b"")):
        details = "gRPC calls have the content-type application/grpc"
        return Refusal(StatusCode.INVALID_ARGUMENT, details, 415)
    if fields.get(b"te") != b"trailers":
        details = "the field te: trailers is missing; a proxy on the way may have removed it"
        return Refusal(StatusCode.INVALID_ARGUMENT, details)
    if fields.get(b"grpc-encoding", b"identity") != b"identity":
        details = "requests may not be compressed; grpc-accept-encoding names what is accepted"
        return Refusal(
            StatusCode.UNIMPLEMENTED, details, metadata=(("grpc-accept-encoding", "identity"),)
        )
    return None


def reset_error(code: int) -> StatusError:
    """Return the status of a call whose stream the half reset (PROTOCOL-HTTP2.md, "Errors")."""
    if code == ErrorCode.ENHANCE_YOUR_CALM:
        return StatusError(StatusCode.RESOURCE_EXHAUSTED, "the header block is too large")
    details = f"the stream was reset, because the client broke a rule ({ErrorCode(code).name})"
    return StatusError(StatusCode.INTERNAL, details)


# --- messages ------------------------------------------------------------------------------------


def frame_message(message: bytes, max_bytes: float = RESPONSE_BYTES) -> bytes:
    """Return a message with its prefix, uncompressed.

    Raises:
        ResponseSizeError: the message is larger than `max_bytes`.
    """
    framed = b"\0" + len(message).to_bytes(4, "big") + message
    check_response_size(framed, max_bytes)
    return framed


def check_response_size(framed: bytes, max_bytes: float) -> None:
    """Refuse a response that clients would not take.

    Raises:
        ResponseSizeError: its message is larger than `max_bytes`.
    """
    size = len(framed) - PREFIX_BYTES
    if size > max_bytes:
        raise ResponseSizeError(
            f"the response has {size} bytes, and limits.response_bytes allows {max_bytes}"
        )


def whole_message(body: bytes, max_bytes: int) -> bytes | None:
    """Return the message of a body that is exactly one small enough message; None for others."""
    size = len(body) - PREFIX_BYTES
    if 0 <= size <= max_bytes and body[0] == 0 and int.from_bytes(body[1:5], "big") == size:
        return body[PREFIX_BYTES:]
    return None


class MessageReader:
    """The messages of one request, from a body that is cut anywhere.

    It keeps bytes, not messages: a client that sends many empty messages would otherwise make the
    agent hold more than the window of the stream.
    """

    __slots__ = ("_held", "_max_bytes")

    def __init__(self, max_bytes: int) -> None:
        self._held = bytearray()
        self._max_bytes = max_bytes

    def __len__(self) -> int:
        """The number of bytes held."""
        return len(self._held)

    def feed(self, data: bytes) -> None:
        """Add the next bytes of the body."""
        self._held += data

    def take(self) -> bytes | None:
        """Remove the next message and return it; None if it is incomplete.

        Raises:
            StatusError: the message is compressed or larger than allowed.
        """
        end = self._end()
        if end is None or end > len(self._held):
            return None
        message = bytes(self._held[PREFIX_BYTES:end])
        del self._held[:end]  # moves the start of the bytearray, and no bytes
        return message

    def check_single(self) -> None:
        """Check that the body may still become a single message.

        Raises:
            StatusError: it may not.
        """
        end = self._end()
        if end is not None and end < len(self._held):
            raise StatusError(StatusCode.UNIMPLEMENTED, "this method takes one message only")

    def take_single(self) -> bytes:
        """Return the only message of an ended body.

        Raises:
            StatusError: it has none, half a message, several, or not an allowed one.
        """
        self.check_single()
        message = self.take()
        if message is None:
            self.check_ended()
            raise StatusError(StatusCode.UNIMPLEMENTED, "this method takes one message, not none")
        return message

    def check_ended(self) -> None:
        """Check that an ended body ends with a whole message.

        Raises:
            StatusError: it does not.
        """
        if self._held:
            raise StatusError(StatusCode.INTERNAL, "the request ends in the middle of a message")

    def _end(self) -> int | None:
        """Return the place behind the next message, if its prefix is there."""
        held = self._held
        if len(held) < PREFIX_BYTES:
            return None
        if held[0]:
            raise StatusError(
                StatusCode.INTERNAL,
                "a message has the compressed flag, and the request has no grpc-encoding",
            )
        size = int.from_bytes(held[1:PREFIX_BYTES], "big")
        if size > self._max_bytes:
            raise StatusError(
                StatusCode.RESOURCE_EXHAUSTED,
                f"the request has {size} bytes, and this method takes {self._max_bytes}",
            )
        return PREFIX_BYTES + size


# --- header blocks of responses ------------------------------------------------------------------
# A block of literals without indexing and of static entries is the same for every connection. The
# numbers are those of the static table (RFC 7541 appendix A).

_STATUS = 8  # :status 200
_CONTENT_TYPE_NAME = 31

_GRPC = named_literal(_CONTENT_TYPE_NAME, b"application/grpc")
RESPONSE_HEADERS = indexed(_STATUS) + _GRPC
"""The header block of every response with messages."""
TRAILERS_OK = literal(b"grpc-status", b"0")
"""The trailers of a call that ends well."""


def trailers(error: StatusError) -> bytes:
    """Return the trailers of a call that ends with a status other than OK."""
    block = literal(b"grpc-status", str(int(error.code)).encode())
    if details := str(error):
        block += literal(b"grpc-message", percent_encode(details))
    for name, value in error.metadata:
        block += literal(name.encode(), value.encode())
    return block


def trailers_only(error: StatusError) -> bytes:
    """Return the header block of a response without messages."""
    return RESPONSE_HEADERS + trailers(error)


def http_headers(http_status: int) -> bytes:
    """Return the header block of a response that is none of gRPC: its body is a text."""
    status = named_literal(_STATUS, str(http_status).encode())
    return status + named_literal(_CONTENT_TYPE_NAME, b"text/plain")


def percent_encode(details: str) -> bytes:
    """Encode the text of a status, and cut it at DETAILS_BYTES.

    Source: PROTOCOL-HTTP2.md, "Percent-Encoded".
    """
    coded = _TO_PERCENT.sub(_percent, details.encode(errors="backslashreplace"))
    if len(coded) <= DETAILS_BYTES:
        return coded
    whole = _BROKEN_PERCENT.sub(b"", coded[:DETAILS_BYTES])
    # Clients complain of half a character.
    text = unquote_to_bytes(whole).decode(errors="ignore")
    return _TO_PERCENT.sub(_percent, text.encode())


def _percent(match: re.Match[bytes]) -> bytes:
    return b"%%%02X" % match[0][0]
