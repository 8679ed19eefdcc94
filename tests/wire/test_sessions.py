"""What a server does over a whole connection: SETTINGS, windows, concurrency, order, its end."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from tests.support.agent import RunningAgent, entry_for_me
from tests.support.rules import (
    CALM,
    CHECK,
    LATER_STREAM,
    NO_ERROR,
    PROTOCOL_ERROR,
    REFUSED_STREAM,
    WATCH,
    block,
    call,
    opening,
)
from tests.support.wire import (
    CONTINUATION,
    DEFAULT_WINDOW,
    END_HEADERS,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    MAX_CONCURRENT_STREAMS,
    MAX_FRAME_SIZE,
    PING,
    PREFACE,
    SETTINGS,
    WIDEST,
    Wire,
    connected,
    data,
    frame,
    message,
    plain_block,
    request_fields,
    rst_stream,
    settings,
    started,
    window_update,
)
from tests.wire.conftest import Server

BLOCK = plain_block(request_fields(CHECK))
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
# FileDescriptorProto of reflection itself: more than a thousand bytes.
FILE_OF_REFLECTION = message(b"\x22\x28grpc.reflection.v1alpha.ServerReflection")
UNAVAILABLE = 14
FETCH = "/SpiffeWorkloadAPI/FetchX509SVID"
CHECKED = message(b"\x08\x01")
"""The response of a health check, on the wire."""


LONG_REQUEST = message(b"\x7a\xe8\x07" + bytes(1000))
"""A valid message of a thousand bytes in an unknown field."""


# --- the first frames ----------------------------------------------------------------------------


def test_first_frame_of_the_server_is_settings(server: Server) -> None:
    with connected(server.path) as wire:
        wire.send(PREFACE, settings())
        head = wire.sock.recv(9)
    assert head[3:9] == bytes([SETTINGS, 0, 0, 0, 0, 0])


def test_server_limits_streams(server: Server) -> None:
    with started(server.path) as wire:
        wire.barrier()
        assert 100 <= wire.settings[MAX_CONCURRENT_STREAMS] <= 1000


def test_each_settings_frame_is_acknowledged(server: Server) -> None:
    with started(server.path) as wire:
        wire.send(settings(), settings((INITIAL_WINDOW_SIZE, 1)), settings())
        wire.barrier()
        assert wire.settings_acks == 4


def test_ping_is_answered_with_its_payload(server: Server) -> None:
    with started(server.path) as wire:
        wire.send(frame(PING, payload=b"12345678"), frame(PING, payload=b"87654321"))
        wire.barrier()
        assert wire.acks[:2] == [b"12345678", b"87654321"]


@pytest.mark.parametrize(
    "beginning",
    [b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n", bytes(64)],
    ids=["HTTP/1.1", "almost a preface", "zeros"],
)
def test_connection_without_preface_is_closed(server: Server, beginning: bytes) -> None:
    with connected(server.path) as wire:
        wire.send(beginning)
        wire.until_closed()


def test_connection_that_begins_without_settings_is_closed(vouchd: Server) -> None:
    with connected(vouchd.path) as wire:
        wire.send(PREFACE, frame(PING, payload=bytes(8)))
        wire.until_closed()
        assert wire.goaways[-1][1] == PROTOCOL_ERROR


def test_session_in_single_bytes_is_served(server: Server) -> None:
    with connected(server.path) as wire:
        session = PREFACE + settings((INITIAL_WINDOW_SIZE, 1000)) + call(wire) + call(wire, 3)
        for at in range(len(session)):
            wire.send(session[at : at + 1])
        assert wire.until_ended(1).body == CHECKED
        assert wire.until_ended(3).body == CHECKED


def test_session_in_one_write_is_served(server: Server) -> None:
    with connected(server.path) as wire:
        wire.send(PREFACE, settings(), *(call(wire, stream) for stream in range(1, 99, 2)))
        for stream in range(1, 99, 2):
            assert wire.until_ended(stream).grpc_status == 0


def test_call_behind_a_fatal_error_is_not_served(server: Server) -> None:
    with started(server.path) as wire:
        wire.barrier()
        wire.send(frame(PING, payload=bytes(7)), call(wire))
        wire.until_closed()
        assert wire.response(1).grpc_status != 0


def test_goaway_names_the_last_stream_served(vouchd: Server) -> None:
    with started(vouchd.path) as wire:
        wire.send(call(wire, 7))
        wire.until_ended(7)
        wire.send(frame(PING, payload=bytes(7)))
        wire.until_closed()
        assert wire.goaways[-1][0] == 7


# --- windows -------------------------------------------------------------------------------------


def test_response_waits_for_the_window_of_its_stream(server: Server) -> None:
    with started(server.path, (INITIAL_WINDOW_SIZE, 1)) as wire:
        wire.barrier()
        wire.send(call(wire))
        while not wire.response(1).body:
            wire.read()
        wire.barrier()
        assert wire.response(1).body == CHECKED[:1]
        wire.send(window_update(1, 2))
        while len(wire.response(1).body) < 3:
            wire.read()
        wire.barrier()
        assert wire.response(1).body == CHECKED[:3]
        wire.send(window_update(1, 100))
        assert wire.until_ended(1).body == CHECKED
        assert wire.response(1).grpc_status == 0


def test_response_waits_for_a_larger_initial_window(server: Server) -> None:
    with started(server.path, (INITIAL_WINDOW_SIZE, 0)) as wire:
        wire.barrier()
        wire.send(call(wire))
        wire.barrier()
        assert wire.response(1).body == b""
        wire.send(settings((INITIAL_WINDOW_SIZE, 7)))
        assert wire.until_ended(1).body == CHECKED


def test_window_of_a_stream_may_become_negative(vouchd: Server) -> None:
    """Three bytes were sent; a window of one byte is then two bytes short."""
    with started(vouchd.path, (INITIAL_WINDOW_SIZE, 3)) as wire:
        wire.barrier()
        wire.send(call(wire))
        while len(wire.response(1).body) < 3:
            wire.read()
        wire.send(settings((INITIAL_WINDOW_SIZE, 1)), window_update(1, 2))
        wire.barrier()
        assert wire.response(1).body == CHECKED[:3]
        wire.send(window_update(1, 1))
        while len(wire.response(1).body) < 4:
            wire.read()
        wire.barrier()
        assert wire.response(1).body == CHECKED[:4]


def test_responses_share_the_window_of_the_connection(server: Server) -> None:
    """Each response fits the window of its stream; all together are more than 65,535 bytes."""
    with started(server.path) as wire:
        for stream in range(1, 41, 2):
            wire.send(
                opening(wire, stream, path=REFLECTION),
                data(stream, FILE_OF_REFLECTION * 10, end=True),
            )
        while received(wire) < DEFAULT_WINDOW:
            wire.read()
        wire.barrier()
        assert received(wire) == DEFAULT_WINDOW
        wire.send(window_update(0, WIDEST - DEFAULT_WINDOW))
        for stream in range(1, 41, 2):
            assert len(wire.until_messages(stream, 10).messages) == 10
        assert received(wire) > DEFAULT_WINDOW


def received(wire: Wire) -> int:
    """The DATA bytes of all responses."""
    return sum(len(response.body) for response in wire.responses.values())


def test_window_of_the_connection_is_given_back_for_requests(server: Server) -> None:
    """The client sends three windows of data, in calls, and only what the server allows."""
    sent, stream = 0, -1
    with started(server.path) as wire:
        while sent < 3 * DEFAULT_WINDOW:
            stream += 2
            wire.send(opening(wire, stream), data(stream, LONG_REQUEST, end=True))
            sent += len(LONG_REQUEST)
            assert wire.until_ended(stream).grpc_status == 0
            while sent + len(LONG_REQUEST) > DEFAULT_WINDOW + wire.windows.get(0, 0):
                assert wire.read()


def test_window_of_the_connection_is_given_back_for_data_of_reset_streams(server: Server) -> None:
    sent = 0
    with started(server.path) as wire:
        for stream in range(1, 400, 2):
            wire.send(opening(wire, stream), rst_stream(stream))
            for _ in range(2):
                wire.send(data(stream, bytes(500)))
                sent += 500
            wire.barrier()
            if wire.is_closed:
                break
            while sent + 1000 > DEFAULT_WINDOW + wire.windows.get(0, 0):
                assert wire.read()
        assert sent > DEFAULT_WINDOW or wire.goaways[-1][1] == CALM


def test_padding_counts_for_the_window(vouchd: Server) -> None:
    padded = bytes([255]) + bytes(255)
    sent = 0
    with started(vouchd.path) as wire:
        wire.send(opening(wire, path=REFLECTION))
        for _ in range(3 * DEFAULT_WINDOW // len(padded)):
            wire.send(frame(0, 0x8, 1, padded), frame(PING, payload=bytes(8)))
            sent += len(padded)
            while sent + len(padded) > DEFAULT_WINDOW + wire.windows.get(0, 0):
                if not wire.read():
                    break
            if wire.is_closed:
                break
        # Padding without end is nothing that a client needs.
        assert wire.windows.get(0, 0) > DEFAULT_WINDOW or wire.goaways[-1][1] == CALM


# --- concurrency ---------------------------------------------------------------------------------


def test_streams_above_the_limit_are_refused(server: Server) -> None:
    with started(server.path) as wire:
        wire.barrier()
        most = wire.settings[MAX_CONCURRENT_STREAMS]
        streams = range(1, 2 * most + 1, 2)
        for stream in streams:
            wire.send(call(wire, stream, path=WATCH))
        for stream in streams:
            wire.until_messages(stream)
            assert wire.open(stream)
        extra = 2 * most + 1
        wire.send(call(wire, extra, ("x-entry", "1")))
        wire.barrier()
        assert wire.response(extra).reset == REFUSED_STREAM
        wire.send(rst_stream(1))
        wire.barrier()
        wire.send(call(wire, extra + 2, ("x-entry", "1")))
        assert wire.until_ended(extra + 2).grpc_status == 0


def test_stream_error_leaves_other_streams_alone(vouchd: Server) -> None:
    with started(vouchd.path) as wire:
        wire.send(call(wire, 1, path=WATCH), call(wire, 3, path=WATCH))
        wire.until_messages(3)
        wire.send(window_update(1, 0))
        wire.barrier()
        assert wire.response(1).reset == PROTOCOL_ERROR
        assert wire.open(3)
        wire.send(call(wire, 5))
        assert wire.until_ended(5).grpc_status == 0


def test_response_before_the_end_of_the_request_resets_it(vouchd: Server) -> None:
    """RFC 9113 section 8.1: the server does not need the rest of the request."""
    with started(vouchd.path) as wire:
        wire.send(opening(wire, 1, ("grpc-encoding", "gzip")))
        assert wire.until_ended(1).grpc_status == 12
        wire.barrier()
        assert wire.response(1).reset == NO_ERROR


# --- header blocks -------------------------------------------------------------------------------


def test_block_of_many_small_frames_is_served_or_refused_for_good(server: Server) -> None:
    """One byte a frame: 9 bytes of overhead each, which a bound has to count."""
    with started(server.path) as wire:
        wire.send(block(1, BLOCK[:1], 0))
        for byte in BLOCK[1:-1]:
            wire.send(frame(CONTINUATION, 0, 1, bytes([byte])))
        wire.send(frame(CONTINUATION, END_HEADERS, 1, BLOCK[-1:]), data(1, message(b""), end=True))
        assert wire.until_ended(1).grpc_status == 0


def test_block_without_end_is_cut(vouchd: Server) -> None:
    with started(vouchd.path) as wire:
        wire.send(frame(HEADERS, 0, 1, BLOCK))
        for _ in range(1000):
            wire.send(frame(CONTINUATION, 0, 1, b"\0\x01a\x04aaaa" * 100))
            if wire.is_closed:
                break
        wire.until_closed()
        assert wire.goaways[-1][1] == CALM


# --- sizes ---------------------------------------------------------------------------------------


def entries(count: int) -> str:
    """Return entries that give this user so many SVIDs: one response of more than 1 KiB each."""
    lines = [
        f"  - {{spiffe_id: /test/{number}, selectors: [unix:uid:{os.getuid()}]}}"
        for number in range(count)
    ]
    return "\n".join(["entries:", *lines, ""])


@pytest.fixture(scope="module")
def many() -> Iterator[RunningAgent]:
    agent = RunningAgent(entries(40))
    yield agent
    agent.close()


@pytest.fixture
def one() -> Iterator[RunningAgent]:
    agent = RunningAgent(entry_for_me())
    yield agent
    agent.close()


def fetch(wire: Wire, stream: int) -> bytes:
    """Return a call of FetchX509SVID."""
    return call(wire, stream, ("workload.spiffe.io", "true"), path=FETCH)


@pytest.mark.parametrize("size", [16_384, 65_536])
def test_frames_keep_to_the_clients_size(many: RunningAgent, size: int) -> None:
    with started(str(many.socket), (MAX_FRAME_SIZE, size), (INITIAL_WINDOW_SIZE, 1 << 20)) as wire:
        wire.send(window_update(0, 1 << 20))
        wire.send(fetch(wire, 1))
        response = wire.until_messages(1)
    assert len(response.body) > 40_000
    assert max(response.frames) <= size
    assert len(response.frames) >= len(response.body) / size


def test_long_response_delays_no_other_call(many: RunningAgent) -> None:
    """The window of one stream is closed, and the response of another passes."""
    with started(str(many.socket), (INITIAL_WINDOW_SIZE, 1000)) as wire:
        wire.send(fetch(wire, 1))
        while len(wire.response(1).body) < 1000:
            wire.read()
        wire.send(call(wire, 3))
        assert wire.until_ended(3).grpc_status == 0
        wire.send(window_update(1, 1 << 20))
        wire.send(window_update(0, 1 << 20))
        assert wire.until_messages(1).messages


# --- the end -------------------------------------------------------------------------------------


def test_stop_says_goaway_in_two_steps(one: RunningAgent) -> None:
    """RFC 9113 section 6.8: no call that the client opens meanwhile is lost without a word."""
    with started(str(one.socket)) as wire:
        wire.send(fetch(wire, 5))
        assert wire.until_messages(5).messages
        os.kill(one.pid, signal.SIGTERM)
        wire.until_closed()
        assert wire.goaways == [(WIDEST, NO_ERROR), (5, NO_ERROR)]
        assert wire.response(5).grpc_status == UNAVAILABLE


def test_call_between_the_two_steps_is_answered_or_ignored(one: RunningAgent) -> None:
    with started(str(one.socket)) as wire:
        wire.send(fetch(wire, 1))
        assert wire.until_messages(1).messages
        wire.answers = False  # so that the second step waits
        os.kill(one.pid, signal.SIGTERM)
        while not wire.goaways:
            assert wire.read()
        wire.send(call(wire, LATER_STREAM))
        wire.until_closed()
        answered = wire.response(LATER_STREAM).grpc_status is not None
        assert answered or wire.goaways[-1][0] < LATER_STREAM
