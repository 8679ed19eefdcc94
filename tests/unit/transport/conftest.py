"""Header blocks of requests."""

from __future__ import annotations

from agent.transport.half import Headers

REQUEST = {
    b":method": b"POST",
    b":scheme": b"http",
    b":path": b"/test.Echo/Say",
    b":authority": b"localhost",
    b"content-type": b"application/grpc",
    b"te": b"trailers",
    b"user-agent": b"test",
}
"""The fields of a call by the document."""


def request_headers(changes: dict[bytes, bytes | None]) -> Headers:
    """Return the fields of a call with some changed, or without those that are None."""
    fields = {**REQUEST, **changes}
    return Headers(tuple((k, v) for k, v in fields.items() if v is not None))
