"""A raw gRPC client over HTTP/2, one call per connection.

A gRPC library always sends correct headers and hides the status and trailers of a call. The tests
need both: requests that no library sends, and answers as they came. Sources: RFC 9113 and
PROTOCOL-HTTP2.md of grpc/grpc.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import unquote, urlsplit

import h2.config
import h2.connection
import h2.events

from .pb import workload_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from google.protobuf.message import Message

OK = 0
CANCELLED = 1
INVALID_ARGUMENT = 3
PERMISSION_DENIED = 7
UNIMPLEMENTED = 12
UNAVAILABLE = 14

Metadata = tuple[tuple[str, str], ...]
SECURITY_HEADER: Metadata = (("workload.spiffe.io", "true"),)
SERVICE = "SpiffeWorkloadAPI"
# Long enough for a server on a busy machine that renews an SVID every few seconds.
TIMEOUT_SECONDS = 10.0
_HTTP2_HEAD_BYTES = 9
_GOAWAY = 7
_MESSAGE_HEAD = struct.Struct(">BI")

ResponseT = TypeVar("ResponseT", bound="Message")


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One method of the Workload API, with a request that a server can answer."""

    name: str
    request: Message
    response: type[Message]

    @property
    def path(self) -> str:
        """Return the method's `:path`."""
        return f"/{SERVICE}/{self.name}"


X509_SVID = Method(name="FetchX509SVID", request=pb.X509SVIDRequest(), response=pb.X509SVIDResponse)
X509_BUNDLES = Method(
    name="FetchX509Bundles", request=pb.X509BundlesRequest(), response=pb.X509BundlesResponse
)
JWT_SVID = Method(
    name="FetchJWTSVID",
    request=pb.JWTSVIDRequest(audience=["spiffe://conformance.example/service"]),
    response=pb.JWTSVIDResponse,
)
JWT_BUNDLES = Method(
    name="FetchJWTBundles", request=pb.JWTBundlesRequest(), response=pb.JWTBundlesResponse
)
# The token has the right form and no valid signature.
VALIDATE = Method(
    name="ValidateJWTSVID",
    request=pb.ValidateJWTSVIDRequest(audience="anybody", svid="e30.e30.c2ln"),
    response=pb.ValidateJWTSVIDResponse,
)
WIT_SVID = Method(name="FetchWITSVID", request=pb.WITSVIDRequest(), response=pb.WITSVIDResponse)
WIT_BUNDLES = Method(
    name="FetchWITBundles", request=pb.WITBundlesRequest(), response=pb.WITBundlesResponse
)

X509_AND_JWT = (X509_SVID, X509_BUNDLES, JWT_SVID, JWT_BUNDLES, VALIDATE)
WIT = (WIT_SVID, WIT_BUNDLES)
STREAMS = (X509_SVID, X509_BUNDLES, JWT_BUNDLES)


class CallError(Exception):
    """The call ended with this status before the expected message came.

    The code is 0 if the call ended with OK. A lost connection counts as UNAVAILABLE, as in every
    gRPC library.
    """

    def __init__(self, code: int, details: str) -> None:
        super().__init__(f"grpc-status {code}: {details}")
        self.code = code
        self.details = details


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The address of a Workload API: a socket's path, or an IP address and a port."""

    address: str | tuple[str, int]

    @classmethod
    def parse(cls, uri: str) -> Endpoint:
        """Parse a value of SPIFFE_ENDPOINT_SOCKET (Workload Endpoint section 4).

        Raises:
            ValueError: the URI has another form.
        """
        parts = urlsplit(uri)
        extra = bool(parts.query or parts.fragment)
        if parts.scheme == "unix" and parts.path.startswith("/") and not (parts.netloc or extra):
            return cls(unquote(parts.path))
        if parts.scheme == "tcp" and parts.port and not (parts.path or extra or parts.username):
            return cls((str(ipaddress.ip_address(parts.hostname or "")), parts.port))
        raise ValueError(f"{uri!r} is neither unix:///absolute/path nor tcp://IP:PORT")

    def connect(self) -> socket.socket:
        """Open a connection. The caller closes it."""
        if isinstance(self.address, tuple):
            return socket.create_connection(self.address, TIMEOUT_SECONDS)
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(TIMEOUT_SECONDS)
            connection.connect(self.address)
        except OSError:
            connection.close()
            raise
        return connection

    @contextmanager
    def open(
        self, path: str, request: bytes, metadata: Metadata = SECURITY_HEADER
    ) -> Iterator[Call]:
        """Start a call on a new connection, which is closed at the end of the block."""
        with self.connect() as connection:
            call = Call(connection)
            call.send(path, request, metadata)
            yield call

    @contextmanager
    def stream(self, method: Method) -> Iterator[Call]:
        """Start a call of a method of the Workload API."""
        with self.open(method.path, method.request.SerializeToString()) as call:
            yield call

    def ask(
        self,
        method: Method,
        response_type: type[ResponseT],
        request: Message | None = None,
        metadata: Metadata = SECURITY_HEADER,
    ) -> ResponseT:
        """Return the response of a method, or the first message of its stream.

        Raises:
            CallError: the call ended without one.
        """
        raw = (method.request if request is None else request).SerializeToString()
        with self.open(method.path, raw, metadata) as call:
            return call.next(response_type)

    def status(
        self, method: Method, request: Message | None = None, metadata: Metadata = SECURITY_HEADER
    ) -> int:
        """Return the status of a call; OK as soon as a message comes."""
        try:
            self.ask(method, method.response, request, metadata)
        except CallError as error:
            return error.code
        return OK


@dataclass(slots=True)
class Call:
    """One call. The connection belongs to the code that made it."""

    connection: socket.socket
    headers: dict[str, str] = field(default_factory=dict)
    """The response's headers and trailers received so far."""
    _http: h2.connection.H2Connection = field(
        default_factory=lambda: h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=True)
        )
    )
    _messages: list[bytes] = field(default_factory=list)
    _buffer: bytes = b""
    _input: bytes = b""
    _ended: bool = False

    def send(self, path: str, request: bytes, metadata: Metadata) -> None:
        """Send the whole request."""
        self._http.initiate_connection()
        stream = self._http.get_next_available_stream_id()
        fixed = (
            (":method", "POST"),
            (":scheme", "http"),
            (":path", path),
            (":authority", "localhost"),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
        )
        self._http.send_headers(stream, fixed + metadata)
        data = _MESSAGE_HEAD.pack(0, len(request)) + request
        self._http.send_data(stream, data, end_stream=True)
        self._flush()

    def next(self, response_type: type[ResponseT]) -> ResponseT:
        """Wait for the next message.

        Raises:
            CallError: the call ended first.
            TimeoutError: the server sent nothing for TIMEOUT_SECONDS.
        """
        while not self._messages:
            if self._ended:
                raise self._error()
            self._receive()
        return response_type.FromString(self._messages.pop(0))

    def end(self) -> CallError:
        """Wait for the end of the call, skip messages before it, and return its status."""
        try:
            while not self._ended:
                self._receive()
        except CallError as error:
            return error
        return self._error()

    def _error(self) -> CallError:
        status = self.headers.get("grpc-status")
        assert status is not None, f"the call ended without grpc-status: {self.headers}"
        return CallError(int(status), unquote(self.headers.get("grpc-message", "")))

    def _receive(self) -> None:
        data = b""
        with suppress(ConnectionError):
            data = self.connection.recv(65536)
        if not data:
            raise CallError(UNAVAILABLE, "the connection was closed before the call had a status")
        self._input += data
        for frame in self._frames():
            for event in self._http.receive_data(frame):
                self._take(event)
        self._flush()

    def _frames(self) -> Iterator[bytes]:
        """Cut whole frames (RFC 9113 section 4.1) from the input and drop GOAWAY.

        Open streams go on after a GOAWAY, but h2 refuses all input after it.
        """
        while len(self._input) >= _HTTP2_HEAD_BYTES:
            end = _HTTP2_HEAD_BYTES + int.from_bytes(self._input[:3])
            if len(self._input) < end:
                return
            frame, self._input = self._input[:end], self._input[end:]
            if frame[3] != _GOAWAY:
                yield frame

    def _take(self, event: h2.events.Event) -> None:
        match event:
            case h2.events.ResponseReceived() | h2.events.TrailersReceived():
                self.headers |= _plain(event.headers or [])
            case h2.events.DataReceived(stream_id=int(stream), data=bytes(data)):
                self._http.acknowledge_received_data(len(data), stream)
                self._buffer += data
                self._cut_messages()
            case h2.events.StreamEnded() | h2.events.StreamReset():
                self._ended = True
            case _:
                pass

    def _cut_messages(self) -> None:
        while len(self._buffer) >= _MESSAGE_HEAD.size:
            compressed, length = _MESSAGE_HEAD.unpack_from(self._buffer)
            assert not compressed, "a message is compressed, but the request offered no encoding"
            end = _MESSAGE_HEAD.size + length
            if len(self._buffer) < end:
                return
            self._messages.append(self._buffer[_MESSAGE_HEAD.size : end])
            self._buffer = self._buffer[end:]

    def _flush(self) -> None:
        # A server may send its answer and close without waiting for acknowledgements.
        with suppress(ConnectionError):
            self.connection.sendall(self._http.data_to_send())


def _plain(headers: Sequence[tuple[bytes | str, bytes | str]]) -> dict[str, str]:
    return {_text(name): _text(value) for name, value in headers}


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
