"""Rules of a protocol as rows: what a client sends, and what a server may do then.

A row is `Rule(send, *allowed)`. `send` gets a started connection and returns the frames; the call
of interest is on stream 1. An outcome is what the client then sees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from tests.support.wire import (
    END_HEADERS,
    END_STREAM,
    HEADERS,
    Fields,
    Wire,
    data,
    frame,
    message,
    plain_block,
    request_fields,
    started,
)

(NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, FLOW_CONTROL_ERROR, SETTINGS_TIMEOUT, STREAM_CLOSED) = (
    range(6)
)
(FRAME_SIZE_ERROR, REFUSED_STREAM, CANCEL, COMPRESSION_ERROR, CONNECT_ERROR, CALM) = range(6, 12)

CHECK = "/grpc.health.v1.Health/Check"
WATCH = "/grpc.health.v1.Health/Watch"
LATER_STREAM = 2001
"""No rule uses this stream: a call on it shows whether the connection still serves."""


@dataclass(frozen=True, slots=True)
class Closed:
    """The server has ended the connection; `code` is that of GOAWAY, None without one."""

    code: int | None


@dataclass(frozen=True, slots=True)
class Reset:
    """The server has reset the stream."""

    code: int


@dataclass(frozen=True, slots=True)
class Status:
    """The response has this status of gRPC."""

    code: int


@dataclass(frozen=True, slots=True)
class Http:
    """The response has this status of HTTP, and is none of gRPC."""

    code: int


@dataclass(frozen=True, slots=True)
class Open:
    """Nothing has come on the stream; the connection serves on."""


Outcome = Closed | Reset | Status | Http | Open
Send = Callable[[Wire], Iterable[bytes]]


class Rule:
    """What a client sends on a started connection, and the outcomes that the standard allows."""

    def __init__(self, send: Send, *allowed: Outcome) -> None:
        self.send = send
        self.allowed = allowed


@dataclass(frozen=True, slots=True)
class Deviation:
    """What the control does instead, with the reason."""

    outcome: Outcome
    why: str


def deviating(why: str, outcome: Outcome, *names: str) -> dict[str, Deviation]:
    """Return one deviation for each of these rules."""
    return dict.fromkeys(names, Deviation(outcome, why))


def call(wire: Wire, stream: int = 1, *extra: tuple[str, str], path: str = CHECK) -> bytes:
    """Return a complete call with an empty request message."""
    return opening(wire, stream, *extra, path=path) + data(stream, message(b""), end=True)


def opening(wire: Wire, stream: int = 1, *extra: tuple[str, str], path: str = CHECK) -> bytes:
    """Return the HEADERS of a call."""
    return wire.headers(stream, request_fields(path, *extra))


def block(stream: int, header_block: bytes, flags: int = END_HEADERS | END_STREAM) -> bytes:
    """Return HEADERS with this encoded block."""
    return frame(HEADERS, flags, stream, header_block)


def fields(*changed: tuple[str, str], without: str | None = None, **pseudo: str) -> Send:
    """Return what sends a call with these fields besides, instead, or without one."""

    def send(_wire: Wire) -> Iterable[bytes]:
        chosen: Fields = [f for f in request_fields(CHECK, *changed, **pseudo) if f[0] != without]
        return whole(plain_block(chosen))

    return send


def whole(header_block: bytes) -> list[bytes]:
    """Return a call on stream 1 with this encoded block, and an empty message."""
    return [block(1, header_block, END_HEADERS), data(1, message(b""), end=True)]


def observe(wire: Wire, awaited: Iterable[Outcome]) -> Outcome:
    """Return what has become of stream 1. Waits for its end if one of `awaited` is one."""
    if any(isinstance(outcome, Status | Http | Reset) for outcome in awaited):
        wire.until_ended(1)
    if not wire.barrier():
        return Closed(wire.goaways[-1][1] if wire.goaways else None)
    response = wire.response(1)
    if response.reset not in (None, NO_ERROR):
        return Reset(response.reset or 0)
    if response.ended and response.value(":status") == "200":
        return Status(-1 if response.grpc_status is None else response.grpc_status)
    if response.ended:
        return Http(int(response.value(":status") or 0))
    return Open()


def check(
    path: str, rule: Rule, deviation: Deviation | None, start: Mapping[int, int] | None = None
) -> None:
    """Play a rule to a server, and require an allowed outcome, or exactly the deviating one."""
    allowed = (deviation.outcome,) if deviation else rule.allowed
    with started(path, *(start or {}).items()) as wire:
        wire.barrier()
        wire.send(*rule.send(wire))
        outcome = observe(wire, allowed)
        assert outcome in allowed, (outcome, wire.goaways, wire.responses)
        if deviation:
            assert outcome not in rule.allowed, "the control has no deviation any more"
        if not wire.is_closed:
            wire.send(call(wire, LATER_STREAM))
            assert wire.until_ended(LATER_STREAM).grpc_status == 0
