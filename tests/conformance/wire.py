"""gRPC over a socket, written from its description and from nothing of the agent.

One call a connection, synchronous, every header the test's own choice: a suite that has to send
what no well-behaved client would, and see what a client library would smooth over, cannot use one.
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

from agent.pb import workloadapi_pb2 as pb

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
# A Workload API answers from memory; the rest is for a machine under load.
PATIENCE_SECONDS = 10.0
_HTTP2_HEAD_BYTES = 9
_GOAWAY = 7
_FRAME_HEAD = struct.Struct(">BI")

ResponseT = TypeVar("ResponseT", bound="Message")


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One method of the Workload API."""

    name: str
    request: Message
    response: type[Message]

    @property
    def path(self) -> str:
        """Its HTTP/2 path."""
        return f"/{SERVICE}/{self.name}"


# Requests that are in order as far as can be known without a token.
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
    """The call ended with this status; 0 too, if a message was still waited for.

    A connection that is lost counts as UNAVAILABLE, as it does in every gRPC library.
    """

    def __init__(self, code: int, details: str) -> None:
        super().__init__(f"grpc-status {code}: {details}")
        self.code = code
        self.details = details


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a Workload API is served: a path, or an IP address and a port."""

    address: str | tuple[str, int]

    @classmethod
    def parse(cls, uri: str) -> Endpoint:
        """Read what SPIFFE_ENDPOINT_SOCKET may hold (Workload Endpoint section 4).

        Raises:
            ValueError: it does not name an endpoint.
        """
        parts = urlsplit(uri)
        behind = bool(parts.query or parts.fragment)
        if parts.scheme == "unix" and parts.path.startswith("/") and not (parts.netloc or behind):
            return cls(unquote(parts.path))
        if parts.scheme == "tcp" and parts.port and not (parts.path or behind or parts.username):
            return cls((str(ipaddress.ip_address(parts.hostname or "")), parts.port))
        raise ValueError(f"{uri!r} is neither unix:///absolute/path nor tcp://IP:PORT")

    def connect(self, timeout: float = PATIENCE_SECONDS) -> socket.socket:
        """A new connection; whoever asks closes it."""
        if isinstance(self.address, tuple):
            return socket.create_connection(self.address, timeout)
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(timeout)
            connection.connect(self.address)
        except OSError:
            connection.close()
            raise
        return connection

    @contextmanager
    def open(
        self,
        path: str,
        request: bytes,
        metadata: Metadata = SECURITY_HEADER,
        timeout: float = PATIENCE_SECONDS,
    ) -> Iterator[Call]:
        """Start a call on a connection of its own, which ends with the block."""
        with self.connect(timeout) as connection:
            call = Call(connection)
            call.send(path, request, metadata)
            yield call

    @contextmanager
    def stream(self, method: Method, timeout: float = PATIENCE_SECONDS) -> Iterator[Call]:
        """Start a call of a method of the Workload API."""
        request = method.request.SerializeToString()
        with self.open(method.path, request, timeout=timeout) as call:
            yield call

    def ask(
        self,
        method: Method,
        response_type: type[ResponseT],
        request: Message | None = None,
        metadata: Metadata = SECURITY_HEADER,
    ) -> ResponseT:
        """The answer of a method, or the first message of its stream.

        Raises:
            CallError: there was none.
        """
        raw = (method.request if request is None else request).SerializeToString()
        with self.open(method.path, raw, metadata) as call:
            return call.next(response_type)

    def status(
        self, method: Method, request: Message | None = None, metadata: Metadata = SECURITY_HEADER
    ) -> int:
        """How a call ends; OK if it answers."""
        try:
            self.ask(method, method.response, request, metadata)
        except CallError as error:
            return error.code
        return OK


@dataclass(slots=True)
class Call:
    """One call over a connection that somebody else owns."""

    connection: socket.socket
    headers: dict[str, str] = field(default_factory=dict)
    """The response's headers and trailers so far."""
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
        self._http.send_data(stream, _FRAME_HEAD.pack(0, len(request)) + request, end_stream=True)
        self._flush()

    def next(self, response_type: type[ResponseT]) -> ResponseT:
        """Wait for the next message.

        Raises:
            CallError: the call ended instead.
            TimeoutError: nothing came for as long as the connection waits.
        """
        while not self._messages:
            if self._ended:
                raise self._error()
            self._receive()
        return response_type.FromString(self._messages.pop(0))

    def end(self) -> CallError:
        """Wait for the end and tell how it was, whatever messages come before."""
        try:
            while not self._ended:
                self._receive()
        except CallError as error:
            return error
        return self._error()

    def _error(self) -> CallError:
        status = self.headers.get("grpc-status")
        assert status is not None, f"the call ended without a status: {self.headers}"
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
        """Whole frames (RFC 9113 section 4.1), less GOAWAY.

        GOAWAY announces the end of a connection whose streams go on; h2 would take nothing more.
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
        while len(self._buffer) >= _FRAME_HEAD.size:
            compressed, length = _FRAME_HEAD.unpack_from(self._buffer)
            assert not compressed, "a message is compressed, and nobody said we could read that"
            end = _FRAME_HEAD.size + length
            if len(self._buffer) < end:
                return
            self._messages.append(self._buffer[_FRAME_HEAD.size : end])
            self._buffer = self._buffer[end:]

    def _flush(self) -> None:
        # Who has said all it had to say and left does not wait for acknowledgements.
        with suppress(ConnectionError):
            self.connection.sendall(self._http.data_to_send())


def _plain(headers: Sequence[tuple[bytes | str, bytes | str]]) -> dict[str, str]:
    return {_text(name): _text(value) for name, value in headers}


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
