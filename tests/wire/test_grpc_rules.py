"""The rules of gRPC over HTTP/2 that bind a server: PROTOCOL-HTTP2.md of grpc/grpc.

grpcio is the control. `GRPCIO` lists where it does something else than vouchd, or than the document
asks; where the document leaves a choice, the rows allow what both do.
"""

from __future__ import annotations

import gzip
from urllib.parse import unquote

import pytest

from tests.support.rules import (
    CHECK,
    WATCH,
    Deviation,
    Http,
    Open,
    Outcome,
    Reset,
    Rule,
    Status,
    block,
    call,
    check,
    deviating,
    fields,
    opening,
    whole,
)
from tests.support.wire import (
    data,
    message,
    plain_block,
    request_fields,
    rst_stream,
    started,
)
from tests.wire.conftest import Server

(OK, CANCELLED, _, INVALID_ARGUMENT, DEADLINE_EXCEEDED) = range(5)
(RESOURCE_EXHAUSTED, UNIMPLEMENTED, INTERNAL) = (8, 12, 13)

SERVED = Status(OK)
CONTENT_TYPE = "content-type"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"


def typed(content_type: str, *allowed: Outcome) -> Rule:
    """Return a rule for a call with this content-type."""
    chosen = [
        (name, content_type if name == CONTENT_TYPE else value)
        for name, value in request_fields(CHECK)
    ]
    header_block = plain_block(chosen)
    return Rule(lambda _wire: whole(header_block), *allowed)


def timed(timeout: str, *allowed: Outcome) -> Rule:
    """Return a rule for a call with this timeout."""
    return Rule(fields(("grpc-timeout", timeout)), *allowed)


def body(payload: bytes, *allowed: Outcome) -> Rule:
    """Return a rule for a unary call with this body."""
    return Rule(lambda wire: [opening(wire), data(1, payload, end=True)], *allowed)


RULES: dict[str, Rule] = {
    # --- request: method, path, content-type, te ---
    "unary call": Rule(lambda wire: [call(wire)], SERVED),
    "method GET": Rule(fields(method="GET"), Http(405)),
    "method PUT": Rule(fields(method="PUT"), Http(405)),
    "unknown method of a service": Rule(
        lambda wire: [call(wire, path="/grpc.health.v1.Health/Unknown")], Status(UNIMPLEMENTED)
    ),
    "unknown service": Rule(
        lambda wire: [call(wire, path="/no.Service/At")], Status(UNIMPLEMENTED)
    ),
    "path of one segment": Rule(lambda wire: [call(wire, path="/Check")], Status(UNIMPLEMENTED)),
    "path with odd characters": Rule(
        lambda wire: [call(wire, path="/a%0a/\\b?c=d")], Status(UNIMPLEMENTED)
    ),
    "scheme https": Rule(fields(scheme="https"), SERVED),
    "authority of anything": Rule(fields(authority="no host at all"), SERVED),
    "no authority": Rule(fields(without=":authority"), SERVED),
    "host in place of the authority": Rule(
        fields(("host", "localhost"), without=":authority"), SERVED
    ),
    "no te": Rule(fields(without="te"), Status(INVALID_ARGUMENT), Status(INTERNAL), Http(400)),
    "no content-type": Rule(fields(without=CONTENT_TYPE), Http(415)),
    "content-type of another protocol": typed("application/json", Http(415)),
    "content-type of gRPC-Web": typed("application/grpc-web+proto", Http(415)),
    "content-type that only begins like gRPC's": typed("application/grpcx", Http(415)),
    "content-type with proto": typed("application/grpc+proto", SERVED),
    "content-type with parameters": typed("application/grpc;charset=utf-8", SERVED),
    "content-type with another format": typed("application/grpc+json", SERVED, Http(415)),
    "user agent and custom metadata": Rule(
        fields(("user-agent", "x/1"), ("x-trace", "1"), ("x-trace-bin", "AAE=")), SERVED
    ),
    "unknown reserved metadata": Rule(fields(("grpc-unheard-of", "1")), SERVED),
    # --- grpc-timeout ---
    "timeout in hours": timed("1H", SERVED),
    "timeout in minutes": timed("1M", SERVED),
    "timeout in seconds": timed("99999999S", SERVED),
    "timeout in milliseconds": timed("60000m", SERVED),
    "timeout in microseconds": timed("60000000u", SERVED),
    "timeout in nanoseconds": timed("99999999n", SERVED, Status(DEADLINE_EXCEEDED)),
    "timeout that passes": Rule(
        lambda wire: [call(wire, 1, ("grpc-timeout", "20m"), path=WATCH)],
        Status(DEADLINE_EXCEEDED),
        Reset(8),
    ),
    "timeout that passes before the request is complete": Rule(
        lambda wire: [opening(wire, 1, ("grpc-timeout", "20m"))],
        Status(DEADLINE_EXCEEDED),
        Reset(8),
    ),
    "timeout that has passed": timed("0n", Status(DEADLINE_EXCEEDED), Reset(8)),
    "timeout of nine digits": timed("100000000n", Status(INVALID_ARGUMENT), Status(INTERNAL)),
    "timeout without a unit": timed("10", Status(INVALID_ARGUMENT), Status(INTERNAL)),
    "timeout of an unknown unit": timed("10d", Status(INVALID_ARGUMENT), Status(INTERNAL)),
    "timeout below zero": timed("-1S", Status(INVALID_ARGUMENT), Status(INTERNAL)),
    "timeout with a space": timed("1 S", Status(INVALID_ARGUMENT), Status(INTERNAL)),
    "empty timeout": timed("", Status(INVALID_ARGUMENT), Status(INTERNAL)),
    # --- grpc-encoding ---
    "encoding identity": Rule(fields(("grpc-encoding", "identity")), SERVED),
    "encoding gzip": Rule(
        lambda wire: [
            opening(wire, 1, ("grpc-encoding", "gzip")),
            data(1, message(gzip.compress(b""), compressed=1), end=True),
        ],
        Status(UNIMPLEMENTED),
    ),
    "unknown encoding": Rule(fields(("grpc-encoding", "rot13")), Status(UNIMPLEMENTED)),
    "accepted encodings do not bind": Rule(fields(("grpc-accept-encoding", "gzip,rot13")), SERVED),
    "compressed message without an encoding": body(
        message(gzip.compress(b""), compressed=1), Status(INTERNAL)
    ),
    "undefined bits of the compressed flag": body(message(b"", compressed=2), Status(INTERNAL)),
    # --- messages ---
    "message in single bytes": Rule(
        lambda wire: [
            opening(wire),
            *(data(1, bytes([byte])) for byte in message(b"\x0a\x00")),
            data(1, end=True),
        ],
        SERVED,
    ),
    "message and end in two frames": Rule(
        lambda wire: [opening(wire), data(1, message(b"")), data(1, end=True)], SERVED
    ),
    "empty DATA in front of a message": Rule(
        lambda wire: [opening(wire), data(1), data(1, message(b""), end=True)], SERVED
    ),
    "half a message": body(message(b"\x0a\x00")[:6], Status(INTERNAL)),
    "half a prefix": body(b"\0\0\0", Status(INTERNAL)),
    "two messages of a unary call": body(message(b"") * 2, Status(UNIMPLEMENTED), Status(INTERNAL)),
    "no message of a unary call": body(b"", Status(UNIMPLEMENTED), Status(INTERNAL)),
    "HEADERS that end a unary call": Rule(
        lambda _wire: [block(1, plain_block(request_fields(CHECK)))],
        Status(UNIMPLEMENTED),
        Status(INTERNAL),
    ),
    "message that is no protobuf": body(
        message(b"\xff\xff\xff"), Status(INTERNAL), Status(INVALID_ARGUMENT)
    ),
    "message of 2 GiB by its prefix": Rule(
        lambda wire: [opening(wire), data(1, b"\0\x7f\xff\xff\xff")], Status(RESOURCE_EXHAUSTED)
    ),
    "message of 5 MB by its prefix": Rule(
        lambda wire: [opening(wire), data(1, b"\0\x00\x4c\x4b\x40")], Status(RESOURCE_EXHAUSTED)
    ),
    # --- end of a call ---
    "call that its client cancels": Rule(
        lambda wire: [call(wire, path=WATCH), rst_stream(1)], Open()
    ),
    "call that its client cancels before the message": Rule(
        lambda wire: [opening(wire), rst_stream(1)], Open()
    ),
}

GRPCIO: dict[str, Deviation] = {
    **deviating(
        "names an error of its own",
        Reset(2),
        "method GET",
        "method PUT",
        "no authority",
        "no te",
    ),
    **deviating(
        "does not check this",
        Status(0),
        "no content-type",
        "content-type of another protocol",
        "content-type of gRPC-Web",
        "content-type that only begins like gRPC's",
        "timeout of nine digits",
        "timeout with a space",
        "encoding gzip",
        "undefined bits of the compressed flag",
        "two messages of a unary call",
    ),
    **deviating(
        "answers malformed requests as calls",
        Status(13),
        "unknown encoding",
    ),
    **deviating(
        "does not check this; then the handler refuses the call",
        Status(12),
        "half a message",
        "half a prefix",
    ),
}


@pytest.mark.parametrize("name", RULES, ids=list(RULES))
def test_server_follows(server: Server, name: str) -> None:
    check(server.path, RULES[name], GRPCIO.get(name) if server.is_control else None)


def test_deviations_of_the_control_are_of_rules() -> None:
    assert set(GRPCIO) <= set(RULES)


def test_response_is_headers_a_message_and_trailers(server: Server) -> None:
    with started(server.path) as wire:
        wire.send(call(wire))
        response = wire.until_ended(1)
    headers, trailers = response.blocks
    assert headers[:1] == [(":status", "200")]
    assert dict(headers)[CONTENT_TYPE].startswith("application/grpc")
    assert dict(trailers)["grpc-status"] == "0"
    assert not [name for name, _ in trailers if name.startswith(":")]
    assert response.messages == [b"\x08\x01"]


def test_refusal_is_trailers_only(server: Server) -> None:
    with started(server.path) as wire:
        wire.send(call(wire, path="/no.Service/At"))
        response = wire.until_ended(1)
    assert len(response.blocks) == 1
    assert response.body == b""
    assert response.blocks[0][0] == (":status", "200")
    assert response.value(CONTENT_TYPE) == "application/grpc"
    assert response.grpc_status == UNIMPLEMENTED


def test_details_are_percent_encoded(server: Server) -> None:
    """RFC 9110 allows no other characters in a field's value."""
    with started(server.path) as wire:
        wire.send(call(wire, path="/no.Service/%C3%A9"))
        details = wire.until_ended(1).value("grpc-message") or ""
    assert details
    assert details == details.strip()
    assert all(" " <= char <= "~" for char in details)
    assert unquote(details, errors="strict")


def test_refused_encoding_names_the_accepted_ones(vouchd: Server) -> None:
    with started(vouchd.path) as wire:
        wire.send(opening(wire, 1, ("grpc-encoding", "rot13")), data(1, message(b""), end=True))
        accepted = (wire.until_ended(1).value("grpc-accept-encoding") or "").split(",")
    assert "identity" in [each.strip() for each in accepted]


def test_stream_of_the_server_stays_open(server: Server) -> None:
    with started(server.path) as wire:
        wire.send(call(wire, path=WATCH))
        assert wire.until_messages(1).messages == [b"\x08\x01"]
        wire.barrier()
        assert wire.open(1)


@pytest.mark.parametrize("version", ["v1alpha"])
def test_bidirectional_call_answers_each_message(server: Server, version: str) -> None:
    """Each answer comes before the next question; the last one before the end of the request."""
    path = f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"
    list_services = b"\x3a\x00"
    with started(server.path) as wire:
        wire.send(opening(wire, path=path))
        for count in (1, 2, 3):
            wire.send(data(1, message(list_services)))
            assert len(wire.until_messages(1, count).messages) == count
        wire.send(data(1, end=True))
        assert wire.until_ended(1).grpc_status == OK


def test_several_messages_in_one_frame_are_all_answered(server: Server) -> None:
    with started(server.path) as wire:
        wire.send(opening(wire, path=REFLECTION), data(1, message(b"\x3a\x00") * 20, end=True))
        assert len(wire.until_ended(1).messages) == 20
        assert wire.response(1).grpc_status == OK


def test_calls_on_one_connection_end_in_any_order(server: Server) -> None:
    with started(server.path) as wire:
        wire.send(opening(wire, 1), opening(wire, 3), call(wire, 5))
        assert wire.until_ended(5).grpc_status == OK
        wire.send(data(3, message(b"")[:3]), data(1, message(b"")[:2]))
        wire.send(data(1, message(b"")[2:], end=True), data(3, message(b"")[3:], end=True))
        assert wire.until_ended(3).grpc_status == OK
        assert wire.until_ended(1).grpc_status == OK
