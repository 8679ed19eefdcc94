"""A gRPC client on a socket of the test: HTTP/2 frames under the test's control."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import h2.config
import h2.connection
import h2.events

from agent.pb import workloadapi_pb2 as pb

if TYPE_CHECKING:
    from google.protobuf.message import Message

MessageT = TypeVar("MessageT", bound="Message")

_GOAWAY = 7  # RFC 9113 section 6.8

GO_AWAY = bytes([0, 0, 8, _GOAWAY, 0]) + bytes(4) + ((1 << 31) - 1).to_bytes(4, "big") + bytes(4)
"""The first of the two GOAWAY frames of a graceful stop."""

UNAVAILABLE = 14
PERMISSION_DENIED = 7
INVALID_ARGUMENT = 3


class ConnectionEndedError(Exception):
    """The agent closed the connection."""


@dataclass
class RawCall:
    """The messages and the status of one call received so far."""

    messages: list[bytes] = field(default_factory=list)
    status: int | None = None
    details: str = ""


class RawClient:
    """An HTTP/2 client on `sock`; the caller closes `sock`."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.http = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        self.calls: dict[int, RawCall] = {}
        self._partial: dict[int, bytes] = {}

    def start(self) -> None:
        self.http.initiate_connection()
        self.flush()

    def flush(self) -> None:
        self.sock.sendall(self.http.data_to_send())

    def call(
        self, method: str, request: Message | bytes, headers: list[tuple[str, str]] | None = None
    ) -> int:
        """Send a request and return its stream ID."""
        stream = self.http.get_next_available_stream_id()
        raw = request if isinstance(request, bytes) else request.SerializeToString()
        if headers is None:
            headers = [("workload.spiffe.io", "true")]
        self.http.send_headers(
            stream,
            [
                (":method", "POST"),
                (":scheme", "http"),
                (":path", method if method.startswith("/") else f"/SpiffeWorkloadAPI/{method}"),
                (":authority", "localhost"),
                ("content-type", "application/grpc"),
                ("te", "trailers"),
                *headers,
            ],
        )
        self.http.send_data(stream, struct.pack(">BI", 0, len(raw)) + raw, end_stream=True)
        self.calls[stream] = RawCall()
        self._partial[stream] = b""
        self.flush()
        return stream

    def read(self) -> None:
        """Receive once from the socket and process the data.

        Raises:
            ConnectionEndedError: the agent closed the connection.
        """
        try:
            data = self.sock.recv(65536)
        except ConnectionError as error:
            raise ConnectionEndedError from error
        if not data:
            raise ConnectionEndedError
        self.receive(data)

    def receive(self, data: bytes) -> None:
        """Process received data and send the acknowledgements that HTTP/2 requires."""
        for event in self.http.receive_data(data):
            self._take(event)
        self.flush()

    def message(self, stream: int, number: int = 0) -> bytes:
        """Wait for a message of a call."""
        call = self.calls[stream]
        while len(call.messages) <= number:
            if call.status is not None:
                raise AssertionError(f"status {call.status}: {call.details}")
            self.read()
        return call.messages[number]

    def status(self, stream: int) -> RawCall:
        """Wait for the end of a call."""
        while self.calls[stream].status is None:
            self.read()
        return self.calls[stream]

    def fetch_x509(self) -> pb.X509SVIDResponse:
        """Open a FetchX509SVID stream and return its first message."""
        stream = self.call("FetchX509SVID", pb.X509SVIDRequest())
        return pb.X509SVIDResponse.FromString(self.message(stream))

    def _take(self, event: h2.events.Event) -> None:
        match event:
            case h2.events.DataReceived(stream_id=int(stream), data=bytes(data)):
                self.http.acknowledge_received_data(len(data), stream)
                self._collect(stream, data)
            case h2.events.ResponseReceived() | h2.events.TrailersReceived():
                self._take_headers(event)
            case h2.events.ConnectionTerminated():
                raise ConnectionEndedError
            case _:
                pass

    def _collect(self, stream: int, data: bytes) -> None:
        buffer = self._partial[stream] + data
        while len(buffer) >= 5:
            (length,) = struct.unpack(">I", buffer[1:5])
            if len(buffer) < 5 + length:
                break
            self.calls[stream].messages.append(buffer[5 : 5 + length])
            buffer = buffer[5 + length :]
        self._partial[stream] = buffer

    def _take_headers(self, event: h2.events.ResponseReceived | h2.events.TrailersReceived) -> None:
        headers = {_text(k): _text(v) for k, v in event.headers or []}
        if "grpc-status" in headers and event.stream_id is not None:
            self.calls[event.stream_id].status = int(headers["grpc-status"])
            self.calls[event.stream_id].details = headers.get("grpc-message", "")


class StayingClient(RawClient):
    """A client that continues after GOAWAY, where h2 would end the connection."""

    _held = b""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self.goaways: list[bytes] = []
        """The payloads of the GOAWAY frames so far."""

    def receive(self, data: bytes) -> None:
        data = self._held + data
        kept, at = b"", 0
        while at + 9 <= len(data):
            end = at + 9 + int.from_bytes(data[at : at + 3], "big")
            if end > len(data):
                break
            if data[at + 3] == _GOAWAY:
                self.goaways.append(data[at + 9 : end])
            else:
                kept += data[at:end]
            at = end
        self._held = data[at:]
        super().receive(kept)


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


def connect(path: str, timeout: float = 30.0, kind: type[RawClient] = RawClient) -> RawClient:
    """Return a client on a new connection."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.connect(path)  # before settimeout: a blocking connect waits while the backlog is full
    sock.settimeout(timeout)
    client = kind(sock)
    try:
        client.start()
    except OSError:
        sock.close()
        raise
    return client
