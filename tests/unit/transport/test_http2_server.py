"""The server's half of HTTP/2: requests, responses, flow control and stream states."""

from __future__ import annotations

import hyperframe.frame as hf
import pytest

from agent.transport.half import (
    BodyReceived,
    ConnectionFailed,
    ErrorCode,
    Event,
    PingAnswered,
    RequestStarted,
    StreamDrained,
    StreamReset,
)
from agent.transport.header_blocks import NO_TABLE, indexed, literal
from agent.transport.http2_server import Http2Server
from tests.support.h2_engine import H2Engine
from tests.support.half_client import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    PREFACE,
    PRIORITY,
    PUSH_PROMISE,
    REQUEST,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    HalfClient,
    data,
    frame,
    frames_of,
    reset,
    settings,
    window_update,
)

OK = indexed(8) + literal(b"content-type", b"application/grpc")
TRAILERS = literal(b"grpc-status", b"0")
HEADER_TABLE_SIZE, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE = 1, 4, 5


@pytest.fixture
def client() -> HalfClient:
    return HalfClient()


@pytest.fixture(params=[Http2Server, H2Engine])
def either(request: pytest.FixtureRequest) -> HalfClient:
    """Make a client of the agent's half, or of the h2 library: for what both do alike."""
    return HalfClient(request.param())


def failure(client: HalfClient, *frames: bytes) -> ErrorCode:
    """Return the code with which these frames end the connection."""
    *_, event = client.feed(*frames)
    assert isinstance(event, ConnectionFailed)
    *_, sent = client.take()
    assert isinstance(sent, hf.GoAwayFrame)
    assert sent.error_code == event.code
    assert sent.additional_data == event.reason.encode()
    assert client.feed(client.headers(99)) == []
    assert client.half.held_bytes == 0
    return event.code


def stream_error(client: HalfClient, *frames: bytes) -> tuple[int, int]:
    """Return the stream that these frames reset, and the code."""
    *_, event = client.feed(*frames)
    assert isinstance(event, StreamReset)
    assert not event.by_client
    [sent] = [sent for sent in client.take() if isinstance(sent, hf.RstStreamFrame)]
    assert (sent.stream_id, sent.error_code) == (event.stream, event.code)
    return event.stream, event.code


def opened(client: HalfClient, stream: int = 1, *, end: bool = False) -> None:
    [event] = client.feed(client.headers(stream, end=end))
    assert isinstance(event, RequestStarted)


def is_mid_frame(client: HalfClient) -> bool:
    return client.half.is_mid_frame


# --- a call -----------------------------------------------------------------------------------


def test_half_sends_its_settings_first() -> None:
    client = HalfClient(greets=False)
    [sent] = client.take()
    assert isinstance(sent, hf.SettingsFrame)
    assert sent.settings == {3: 100, 6: 8192}


def test_half_acknowledges_settings() -> None:
    client = HalfClient(greets=False)
    client.take()
    client.feed(PREFACE, settings())
    [sent] = client.take()
    assert isinstance(sent, hf.SettingsFrame)
    assert "ACK" in sent.flags


def test_request_has_its_fields_and_body(either: HalfClient) -> None:
    started, body = either.feed(either.headers(1), data(1, b"question", end=True))
    assert isinstance(started, RequestStarted)
    assert started.headers.fields == tuple((k.encode(), v.encode()) for k, v in REQUEST)
    assert (started.stream, started.ended) == (1, False)
    assert body == BodyReceived(1, b"question", ended=True)


def test_equal_blocks_share_one_headers_object(client: HalfClient) -> None:
    other = HalfClient()
    [first] = client.feed(client.headers(1))
    [second] = other.feed(other.headers(1))
    assert isinstance(first, RequestStarted)
    assert isinstance(second, RequestStarted)
    assert first.headers is second.headers


def test_response_is_headers_data_and_trailers(either: HalfClient) -> None:
    opened(either, end=True)
    either.half.send_headers(1, OK)
    assert either.half.send_data(1, b"answer")
    either.half.send_trailers(1, TRAILERS)
    headers, body, trailers = either.take()
    assert either.fields_of(headers) == {":status": "200", "content-type": "application/grpc"}
    assert isinstance(body, hf.DataFrame)
    assert (body.data, set(body.flags)) == (b"answer", set())
    assert either.fields_of(trailers) == {"grpc-status": "0"}
    assert "END_STREAM" in trailers.flags


def test_response_before_the_end_of_its_request_resets_the_stream_without_error(
    client: HalfClient,
) -> None:
    opened(client)
    client.half.send_headers(1, OK + TRAILERS, end=True)
    headers, sent = client.take()
    assert "END_STREAM" in headers.flags
    assert isinstance(sent, hf.RstStreamFrame)
    assert sent.error_code == ErrorCode.NO_ERROR
    # The client did not know: what it sent meanwhile is no error.
    assert client.feed(data(1, b"late"), data(1, end=True)) == []
    assert client.take() == []


def test_trailers_end_a_request(either: HalfClient) -> None:
    opened(either)
    assert either.feed(either.headers(1, [("x-checksum", "1")], end=True)) == [
        BodyReceived(1, b"", ended=True)
    ]


def test_padding_is_no_part_of_the_body(either: HalfClient) -> None:
    opened(either)
    padded = frame(DATA, 0x8 | END_STREAM, 1, b"\x03body\0\0\0")
    assert either.feed(padded) == [BodyReceived(1, b"body", ended=True)]


def test_padding_and_priority_are_no_part_of_a_header_block(either: HalfClient) -> None:
    block = either.encoder.encode(REQUEST)
    padded = frame(HEADERS, 0x8 | 0x20 | END_HEADERS, 1, b"\x02\0\0\0\0\x10" + block + b"\0\0")
    [event] = either.feed(padded)
    assert isinstance(event, RequestStarted)


def test_header_block_continues_in_more_frames(client: HalfClient) -> None:
    block = client.encoder.encode(REQUEST)
    assert client.feed(frame(HEADERS, END_STREAM, 1, block[:5])) == []
    assert is_mid_frame(client)
    assert client.half.held_bytes == 5
    assert client.feed(frame(CONTINUATION, 0, 1, block[5:9])) == []
    [event] = client.feed(frame(CONTINUATION, END_HEADERS, 1, block[9:]))
    assert isinstance(event, RequestStarted)
    assert event.ended
    assert not is_mid_frame(client)
    assert client.half.held_bytes == 0


def test_half_tells_how_much_of_a_body_is_missing(client: HalfClient) -> None:
    opened(client)
    body = data(1, bytes(10_000))
    for at, missing in ((0, 0), (8, 0), (9, 10_009), (500, 9_518), (10_008, 10)):
        assert client.half.missing_body == 0
        client.feed(body[:at])
        assert client.half.missing_body == missing
        client.feed(body[at:])
    client.feed(frame(PING, 0, 0, bytes(8))[:-1])
    assert client.half.missing_body == 0


def test_ping_is_answered(either: HalfClient) -> None:
    either.feed(frame(PING, 0, 0, b"01234567"))
    [sent] = either.take()
    assert isinstance(sent, hf.PingFrame)
    assert "ACK" in sent.flags
    assert sent.opaque_data == b"01234567"


def test_answer_to_a_ping_has_its_place_in_the_bytes_of_the_client(either: HalfClient) -> None:
    either.half.ping(b"question")
    [sent] = either.take()
    assert isinstance(sent, hf.PingFrame)
    assert sent.opaque_data == b"question"
    before = either.headers(1)
    place = len(PREFACE) + len(settings()) + len(before)
    answer = frame(PING, ACK, 0, b"question")
    either.feed(before, answer[:3])
    assert either.feed(answer[3:]) == [PingAnswered(b"question", place)]


@pytest.mark.parametrize("size", [1, 2, 7, 13])
def test_frames_may_be_cut_anywhere(size: int) -> None:
    client = HalfClient(greets=False)
    sent = PREFACE + settings() + client.headers(1) + data(1, b"x" * 300, end=True)
    events = []
    for at in range(0, len(sent), size):
        events += client.feed(sent[at : at + size])
    started, body = events
    assert isinstance(started, RequestStarted)
    assert body == BodyReceived(1, b"x" * 300, ended=True)
    assert not is_mid_frame(client)


# --- resets, releases, GOAWAY -----------------------------------------------------------------


def test_reset_of_the_client_ends_its_stream(either: HalfClient) -> None:
    opened(either, end=True)
    assert either.feed(reset(1, 8)) == [StreamReset(1, 8, by_client=True)]
    either.half.send_headers(1, OK)
    assert either.half.send_data(1, b"answer")
    either.half.send_trailers(1, TRAILERS)
    either.half.consume(1, 10)
    either.half.reset_stream(1, ErrorCode.CANCEL)
    assert either.take() == []


def test_reset_drops_waiting_data(client: HalfClient) -> None:
    opened(client)
    assert not client.half.send_data(1, b"x" * 100_000)
    assert client.half.held_bytes == 100_000
    client.half.reset_stream(1, ErrorCode.CANCEL)
    assert client.half.held_bytes == 0
    [sent] = client.take()
    assert isinstance(sent, hf.RstStreamFrame)
    assert sent.error_code == ErrorCode.CANCEL
    assert client.feed(data(1, b"late"), window_update(1, 10), reset(1)) == []


def test_response_that_waits_on_several_streams_counts_once(client: HalfClient) -> None:
    shared, own = b"x" * 100_000, b"y" * 80_000
    for stream in (1, 3, 5):
        opened(client, stream)
        assert not client.half.send_data(stream, own if stream == 5 else shared)
    assert client.half.held_bytes == 180_000
    client.half.reset_stream(1, ErrorCode.CANCEL)
    assert client.half.held_bytes == 180_000, "the other stream holds it"
    client.half.reset_stream(3, ErrorCode.CANCEL)
    assert client.half.held_bytes == 80_000
    client.feed(window_update(5, 1 << 20), window_update(0, 1 << 20))
    while client.take():
        pass
    assert client.half.held_bytes == 0
    assert not client.half.send_data(5, own)
    assert client.half.held_bytes == 80_000


def test_half_remembers_the_latest_streams_that_it_reset(client: HalfClient) -> None:
    """The first of many is forgotten, so that what it remembers is bounded."""
    for stream in range(1, 2 * 300, 2):
        opened(client, stream)
        client.half.reset_stream(stream, ErrorCode.CANCEL)
        client.half.release(stream)
        client.take()
    assert client.feed(data(599, b"late")) == []
    [fault] = client.feed(data(1, b"late"))
    assert fault == StreamReset(1, ErrorCode.STREAM_CLOSED, by_client=False)


def test_cancelled_streams_make_room_before_their_handlers_end(either: HalfClient) -> None:
    for stream in range(1, 200, 2):
        opened(either, stream)
    assert stream_error(either, either.headers(201)) == (201, ErrorCode.REFUSED_STREAM)
    either.feed(*[reset(stream) for stream in range(1, 200, 2)])
    for stream in range(203, 402, 2):
        opened(either, stream)
    assert stream_error(either, either.headers(403)) == (403, ErrorCode.REFUSED_STREAM)


def test_stream_counts_until_its_handler_has_ended(either: HalfClient) -> None:
    for stream in range(1, 400, 2):
        opened(either, stream)
        either.feed(reset(stream))
    assert stream_error(either, either.headers(401)) == (401, ErrorCode.REFUSED_STREAM)
    either.half.release(1)
    opened(either, 403)


def test_stream_counts_until_its_response_has_ended(client: HalfClient) -> None:
    client.feed(settings([(INITIAL_WINDOW_SIZE, 0)]))
    for stream in range(1, 200, 2):
        opened(client, stream, end=True)
        client.half.send_headers(stream, OK)
        assert not client.half.send_data(stream, b"answer")
        client.half.send_trailers(stream, TRAILERS)
        client.half.release(stream)
    client.take()
    assert stream_error(client, client.headers(201)) == (201, ErrorCode.REFUSED_STREAM)
    client.feed(window_update(1, 6))
    client.take()
    assert client.half.take_events() == [StreamDrained(1)]
    opened(client, 203)


def test_table_changes_by_the_block_of_a_refused_stream(either: HalfClient) -> None:
    for stream in range(1, 200, 2):
        opened(either, stream)
    fields = [*REQUEST, ("x-new", "value")]
    either.feed(either.headers(201, fields))
    either.half.release(1)
    either.feed(reset(1))
    [event] = either.feed(either.headers(203, fields))
    assert isinstance(event, RequestStarted)
    assert (b"x-new", b"value") in event.headers.fields


def respond(client: HalfClient, stream: int, way: str) -> bytes:
    """Return the first block of a response on a new stream."""
    if way == "too many fields":
        client.feed(client.headers(stream, [*REQUEST, *[("x", "y")] * 100]))
    else:
        opened(client, stream)
        client.half.send_headers(stream, OK, end=way == "trailers only")
    sent = client.take()[0]
    assert isinstance(sent, hf.HeadersFrame)
    return bytes(sent.data)


@pytest.mark.parametrize("way", ["headers", "trailers only", "too many fields"])
def test_first_block_after_a_smaller_table_announces_it(client: HalfClient, way: str) -> None:
    """RFC 7541 section 4.2. The half uses no table, so that once is enough."""
    client.feed(settings([(HEADER_TABLE_SIZE, 4096)]))
    client.take()
    assert respond(client, 1, way)[:1] != NO_TABLE
    client.feed(settings([(HEADER_TABLE_SIZE, 100)]))
    client.take()
    assert respond(client, 3, way)[:1] == NO_TABLE
    assert respond(client, 5, way)[:1] != NO_TABLE


def test_padding_of_late_data_is_checked(client: HalfClient) -> None:
    """The client may not know that its stream was reset, but no frame is all padding."""
    opened(client, 1)
    client.half.reset_stream(1, ErrorCode.CANCEL)
    client.take()
    assert failure(client, frame(DATA, 0x8, 1, b"\5abc")) is ErrorCode.PROTOCOL_ERROR


def test_go_away_in_two_steps(client: HalfClient) -> None:
    opened(client, 1)
    client.half.go_away(last=False)
    opened(client, 3)
    client.half.go_away(last=True)
    assert client.feed(client.headers(5), data(5, b"x"), window_update(5, 1), reset(5)) == []
    assert client.feed(client.headers(5, [("x", "y")], end=True)) == []
    first, second = client.take()
    assert isinstance(first, hf.GoAwayFrame)
    assert isinstance(second, hf.GoAwayFrame)
    assert (first.last_stream_id, second.last_stream_id) == (2**31 - 1, 3)
    assert client.feed(data(3, b"x", end=True)) == [BodyReceived(3, b"x", ended=True)]


def test_second_go_away_names_no_later_stream(client: HalfClient) -> None:
    opened(client, 1)
    client.half.go_away(last=True)
    assert client.feed(client.headers(3)) == []
    client.half.go_away(last=True)
    first, second = client.take()
    assert isinstance(first, hf.GoAwayFrame)
    assert isinstance(second, hf.GoAwayFrame)
    assert first.last_stream_id == second.last_stream_id == 1
    assert client.feed(data(3, b"x")) == []


def test_go_away_of_the_client_is_no_error(either: HalfClient) -> None:
    assert either.feed(frame(GOAWAY, 0, 0, bytes(8))) == []
    opened(either, 1)


# --- flow control -----------------------------------------------------------------------------


def test_windows_hold_data_back(client: HalfClient) -> None:
    opened(client, end=True)
    client.half.send_headers(1, OK)
    assert not client.half.send_data(1, b"x" * 70_000)
    client.half.send_trailers(1, TRAILERS)
    sent = sum(len(part.data) for part in client.take() if isinstance(part, hf.DataFrame))
    assert sent == 65_535
    assert client.half.held_bytes == 70_000, "a part keeps all of it in memory"
    assert client.feed(window_update(1, 10_000)) == []
    assert client.take() == []
    assert client.feed(window_update(0, 10_000)) == []
    body, trailers = client.take()
    assert isinstance(body, hf.DataFrame)
    assert len(body.data) == 70_000 - 65_535
    assert "END_STREAM" in trailers.flags
    assert client.half.take_events() == [StreamDrained(1)]
    assert client.half.held_bytes == 0


def test_data_is_cut_into_frames_of_the_size_that_the_client_takes(either: HalfClient) -> None:
    opened(either, end=True)
    either.half.send_data(1, b"x" * 40_000)
    assert [len(part.data) for part in either.take() if isinstance(part, hf.DataFrame)] == [
        16_384,
        16_384,
        7_232,
    ]
    either.feed(settings([(MAX_FRAME_SIZE, 20_000)]))
    either.take()
    assert either.half.send_data(1, b"x" * 20_000)
    assert [len(part.data) for part in either.take() if isinstance(part, hf.DataFrame)] == [20_000]


def test_one_output_is_bounded(client: HalfClient) -> None:
    client.feed(settings([(INITIAL_WINDOW_SIZE, 2**31 - 1)]), window_update(0, 2**31 - 65_536))
    client.take()
    opened(client, end=True)
    answer = b"x" * 1_000_000
    client.half.send_data(1, answer)
    outputs = list(iter(client.half.take_output, b""))
    assert max(map(len, outputs)) < 66_000
    sent = frames_of(b"".join(outputs))
    assert b"".join(part.data for part in sent if isinstance(part, hf.DataFrame)) == answer
    assert client.half.take_events() == [StreamDrained(1)]


def test_streams_take_turns(client: HalfClient) -> None:
    client.feed(settings([(INITIAL_WINDOW_SIZE, 2**20)]), window_update(0, 2**20))
    client.take()
    for stream in (1, 3):
        opened(client, stream, end=True)
        client.half.send_data(stream, b"x" * 32_768)
    sent = [part for part in client.take() if isinstance(part, hf.DataFrame)]
    assert [part.stream_id for part in sent] == [1, 3, 1, 3]


def test_data_behind_waiting_data_keeps_its_order(client: HalfClient) -> None:
    opened(client, end=True)
    client.half.send_data(1, b"a" * 20_000)
    assert not client.half.send_data(1, b"b" * 10)
    sent = b"".join(part.data for part in client.take() if isinstance(part, hf.DataFrame))
    assert sent == b"a" * 20_000 + b"b" * 10


def test_smaller_initial_window_makes_windows_negative(client: HalfClient) -> None:
    opened(client, end=True)
    assert client.half.send_data(1, b"x" * 10_000)
    assert not client.half.send_data(1, b"x" * 60_000)
    client.feed(settings([(INITIAL_WINDOW_SIZE, 1_000)]))
    assert not any(
        isinstance(part, hf.DataFrame) and len(part.data) != 10_000 for part in client.take()
    )
    client.feed(window_update(1, 9_000))
    assert client.take() == []
    client.feed(window_update(1, 1))
    [part] = client.take()
    assert isinstance(part, hf.DataFrame)
    assert len(part.data) == 1


def test_window_of_the_connection_is_replenished_on_receipt(client: HalfClient) -> None:
    opened(client)
    client.feed(data(1, b"x" * 16_384), data(1, b"x" * 16_384))
    [sent] = client.take()
    assert isinstance(sent, hf.WindowUpdateFrame)
    assert (sent.stream_id, sent.window_increment) == (0, 32_768)


def test_window_of_a_stream_is_replenished_as_data_is_consumed(client: HalfClient) -> None:
    opened(client)
    client.feed(data(1, b"x" * 16_384), data(1, b"x" * 16_384))
    client.take()
    client.half.consume(1, 16_384)
    assert client.take() == []
    client.half.consume(1, 16_384)
    [sent] = client.take()
    assert isinstance(sent, hf.WindowUpdateFrame)
    assert (sent.stream_id, sent.window_increment) == (1, 32_768)


def test_data_beyond_the_window_of_a_stream_resets_it(client: HalfClient) -> None:
    opened(client)
    chunks = [data(1, b"x" * 16_384) for _ in range(4)]
    assert stream_error(client, *chunks) == (1, ErrorCode.FLOW_CONTROL_ERROR)


def test_padding_does_not_use_up_the_window_of_a_stream(either: HalfClient) -> None:
    opened(either)
    padded = frame(DATA, 0x8, 1, b"\xff" + b"x" + bytes(255))
    for _ in range(400):
        either.half.consume(1, 1)
        assert either.feed(padded) == [BodyReceived(1, b"x", ended=False)]


# --- rules of frames --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        (frame(DATA, 0, 0, b"x"), ErrorCode.PROTOCOL_ERROR),
        (frame(DATA, 0, 1, b"x"), ErrorCode.PROTOCOL_ERROR),
        (frame(DATA, 0, 2, b"x"), ErrorCode.PROTOCOL_ERROR),
        (frame(HEADERS, END_HEADERS, 0, b"\x82"), ErrorCode.PROTOCOL_ERROR),
        (frame(HEADERS, END_HEADERS, 2, b"\x82"), ErrorCode.PROTOCOL_ERROR),
        (frame(HEADERS, END_HEADERS | 0x8, 1, b"\x05\x82"), ErrorCode.PROTOCOL_ERROR),
        (frame(HEADERS, END_HEADERS | 0x8, 1), ErrorCode.PROTOCOL_ERROR),
        (frame(HEADERS, END_HEADERS | 0x20, 1, b"\0\0\0\0"), ErrorCode.FRAME_SIZE_ERROR),
        (frame(HEADERS, END_HEADERS | 0x20, 1, b"\0\0\0\1\0\x82"), ErrorCode.PROTOCOL_ERROR),
        (frame(HEADERS, END_HEADERS, 1, b"\x80"), ErrorCode.COMPRESSION_ERROR),
        (frame(HEADERS, 0, 1, b"\x82") + frame(PING, 0, 0, bytes(8)), ErrorCode.PROTOCOL_ERROR),
        (frame(HEADERS, 0, 1, b"\x82") + frame(CONTINUATION, 4, 3), ErrorCode.PROTOCOL_ERROR),
        (frame(HEADERS, 0, 1, b"\x82") + frame(0xAA), ErrorCode.PROTOCOL_ERROR),
        (frame(CONTINUATION, END_HEADERS, 1, b"\x82"), ErrorCode.PROTOCOL_ERROR),
        (frame(PRIORITY, 0, 0, bytes(5)), ErrorCode.PROTOCOL_ERROR),
        (frame(PRIORITY, 0, 1, bytes(4)), ErrorCode.FRAME_SIZE_ERROR),
        (frame(PRIORITY, 0, 1, b"\0\0\0\1\0"), ErrorCode.PROTOCOL_ERROR),
        (frame(RST_STREAM, 0, 0, bytes(4)), ErrorCode.PROTOCOL_ERROR),
        (frame(RST_STREAM, 0, 1, bytes(4)), ErrorCode.PROTOCOL_ERROR),
        (frame(RST_STREAM, 0, 1, bytes(3)), ErrorCode.FRAME_SIZE_ERROR),
        (frame(SETTINGS, 0, 1), ErrorCode.PROTOCOL_ERROR),
        (frame(SETTINGS, ACK, 0, bytes(6)), ErrorCode.FRAME_SIZE_ERROR),
        (frame(SETTINGS, 0, 0, bytes(5)), ErrorCode.FRAME_SIZE_ERROR),
        (settings([(2, 2)]), ErrorCode.PROTOCOL_ERROR),
        (settings([(4, 2**31)]), ErrorCode.FLOW_CONTROL_ERROR),
        (settings([(5, 16_383)]), ErrorCode.PROTOCOL_ERROR),
        (settings([(5, 2**24)]), ErrorCode.PROTOCOL_ERROR),
        (frame(PUSH_PROMISE, END_HEADERS, 1, bytes(4)), ErrorCode.PROTOCOL_ERROR),
        (frame(PING, 0, 1, bytes(8)), ErrorCode.PROTOCOL_ERROR),
        (frame(PING, 0, 0, bytes(7)), ErrorCode.FRAME_SIZE_ERROR),
        (frame(GOAWAY, 0, 1, bytes(8)), ErrorCode.PROTOCOL_ERROR),
        (frame(GOAWAY, 0, 0, bytes(7)), ErrorCode.FRAME_SIZE_ERROR),
        (window_update(0, 0), ErrorCode.PROTOCOL_ERROR),
        (window_update(1, 1), ErrorCode.PROTOCOL_ERROR),
        (window_update(0, 2**31 - 1), ErrorCode.FLOW_CONTROL_ERROR),
        (frame(WINDOW_UPDATE, 0, 0, bytes(3)), ErrorCode.FRAME_SIZE_ERROR),
        (frame(DATA, 0, 1, bytes(16_385)), ErrorCode.FRAME_SIZE_ERROR),
    ],
)
def test_broken_rule_ends_the_connection(
    client: HalfClient, frames: bytes, code: ErrorCode
) -> None:
    assert failure(client, frames) == code


@pytest.mark.parametrize(
    "first",
    [b"GET / HTTP/1.1\r\n", PREFACE + frame(PING, 0, 0, bytes(8)), b"PRI * HTTP/2.0\r\n\r\nXX"],
)
def test_connection_without_preface_and_settings_fails(first: bytes) -> None:
    assert failure(HalfClient(greets=False), first) == ErrorCode.PROTOCOL_ERROR


def test_acknowledgement_is_no_first_settings() -> None:
    client = HalfClient(greets=False)
    assert failure(client, PREFACE, frame(SETTINGS, ACK)) == ErrorCode.PROTOCOL_ERROR


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        (frame(PRIORITY, 0, 1, bytes(4)), ErrorCode.FRAME_SIZE_ERROR),
        (frame(PRIORITY, 0, 1, b"\0\0\0\1\0"), ErrorCode.PROTOCOL_ERROR),
        (window_update(1, 0), ErrorCode.PROTOCOL_ERROR),
        (window_update(1, 2**31 - 1), ErrorCode.FLOW_CONTROL_ERROR),
    ],
)
def test_broken_rule_of_a_stream_resets_it(
    client: HalfClient, frames: bytes, code: ErrorCode
) -> None:
    opened(client)
    assert stream_error(client, frames) == (1, code)
    opened(client, 3)


def test_initial_window_may_not_make_the_window_of_a_stream_too_wide(client: HalfClient) -> None:
    opened(client)
    client.feed(window_update(1, 1_000))
    assert failure(client, settings([(4, 2**31 - 1)])) == ErrorCode.FLOW_CONTROL_ERROR


def test_unknown_frames_settings_and_flags_are_ignored(either: HalfClient) -> None:
    assert either.feed(frame(0xAA, 0xFF, 7, b"x"), settings([(0xBEEF, 1)])) == []
    assert either.feed(frame(SETTINGS, ACK), frame(PRIORITY, 0, 5, bytes(5))) == []
    [event] = either.feed(
        frame(HEADERS, 0xD2 | END_HEADERS, 1 | 1 << 31, either.encoder.encode(REQUEST))
    )
    assert isinstance(event, RequestStarted)


def test_data_after_the_end_of_a_request_resets_its_stream(either: HalfClient) -> None:
    opened(either, end=True)
    assert stream_error(either, data(1, b"x")) == (1, ErrorCode.STREAM_CLOSED)


def test_headers_after_the_end_of_a_request_reset_its_stream(either: HalfClient) -> None:
    opened(either, end=True)
    assert stream_error(either, either.headers(1, end=True)) == (1, ErrorCode.STREAM_CLOSED)


def test_data_after_a_reset_of_the_client_is_an_error_of_its_stream(client: HalfClient) -> None:
    opened(client)
    client.feed(reset(1))
    assert stream_error(client, data(1, b"x")) == (1, ErrorCode.STREAM_CLOSED)


def test_headers_of_a_closed_stream_end_the_connection(client: HalfClient) -> None:
    opened(client, end=True)
    client.half.send_headers(1, OK + TRAILERS, end=True)
    assert failure(client, client.headers(1, end=True)) == ErrorCode.STREAM_CLOSED


def test_trailers_after_a_reset_of_the_half_are_ignored(either: HalfClient) -> None:
    opened(either)
    either.half.reset_stream(1, ErrorCode.CANCEL)
    assert either.feed(either.headers(1, [("x-new", "value")], end=True)) == []


def test_table_changes_by_trailers_that_are_ignored(either: HalfClient) -> None:
    opened(either)
    either.half.reset_stream(1, ErrorCode.CANCEL)
    either.feed(either.headers(1, [("x-new", "value")], end=True))
    [event] = either.feed(either.headers(3, [*REQUEST, ("x-new", "value")]))
    assert isinstance(event, RequestStarted)
    assert (b"x-new", b"value") in event.headers.fields


def test_frames_of_the_latest_reset_streams_are_ignored(client: HalfClient) -> None:
    for stream in range(1, 601, 2):
        opened(client, stream)
        client.half.reset_stream(stream, ErrorCode.CANCEL)
        client.half.release(stream)
    client.take()
    assert client.feed(data(599, b"x"), data(101, b"x")) == []
    assert stream_error(client, data(1, b"x")) == (1, ErrorCode.STREAM_CLOSED)


@pytest.mark.parametrize(
    "fields", [[(":path", "/")], [("Upper", "case")], [("connection", "close")]]
)
def test_malformed_trailers_reset_their_stream(
    client: HalfClient, fields: list[tuple[str | bytes, str | bytes]]
) -> None:
    opened(client)
    assert stream_error(client, client.headers(1, fields, end=True)) == (
        1,
        ErrorCode.PROTOCOL_ERROR,
    )


def test_trailers_that_do_not_end_the_request_reset_its_stream(client: HalfClient) -> None:
    opened(client)
    assert stream_error(client, client.headers(1, [("x", "y")])) == (1, ErrorCode.PROTOCOL_ERROR)


def test_content_length_must_be_the_length_of_the_body(client: HalfClient) -> None:
    def request(stream: int, *, end: bool = False) -> bytes:
        return client.headers(stream, [*REQUEST, ("content-length", "4")], end=end)

    *_, good = client.feed(request(1), data(1, b"bo"), data(1, b"dy", end=True))
    assert good == BodyReceived(1, b"dy", ended=True)
    for bad in (
        request(3, end=True),
        request(5) + data(5, b"bod", end=True),
        request(7) + data(7, b"body!"),
        request(9) + data(9, b"bod") + client.headers(9, [("x", "y")], end=True),
    ):
        assert stream_error(client, bad)[1] == ErrorCode.PROTOCOL_ERROR


def test_malformed_request_resets_its_stream(client: HalfClient) -> None:
    assert stream_error(client, client.headers(1, REQUEST[1:])) == (1, ErrorCode.PROTOCOL_ERROR)


# --- bounds -----------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [[("x", "y" * 9_000)], [(f"x-{n}", "y") for n in range(64)]])
def test_request_with_too_many_or_large_fields_is_answered_with_a_status(
    client: HalfClient, fields: list[tuple[str, str]]
) -> None:
    event, late = client.feed(client.headers(1, [*REQUEST, *fields])), client.feed(data(1, b"x"))
    assert event == [StreamReset(1, ErrorCode.ENHANCE_YOUR_CALM, by_client=False)]
    assert late == []
    headers, sent = client.take()
    assert client.fields_of(headers) == {":status": "431"}
    assert isinstance(sent, hf.RstStreamFrame)
    assert sent.error_code == ErrorCode.NO_ERROR
    client.feed(client.headers(3, [*REQUEST, *fields], end=True))
    [headers] = client.take()
    assert client.fields_of(headers) == {":status": "431"}
    opened(client, 5)


def test_header_block_is_bounded(client: HalfClient) -> None:
    assert failure(client, frame(HEADERS, END_HEADERS, 1, bytes(8192))) == (
        ErrorCode.ENHANCE_YOUR_CALM
    )


def test_header_block_of_far_too_many_fields_ends_the_connection(client: HalfClient) -> None:
    block = b"\x41\0" * 4_000  # each adds to the table
    assert failure(client, frame(HEADERS, END_HEADERS, 1, block)) == ErrorCode.ENHANCE_YOUR_CALM


def test_header_block_of_many_frames_is_bounded(client: HalfClient) -> None:
    parts = [frame(CONTINUATION, 0, 1, bytes(91))] * 100
    assert failure(client, frame(HEADERS, 0, 1), *parts) == ErrorCode.ENHANCE_YOUR_CALM


@pytest.mark.parametrize(
    "flood",
    [
        frame(PING, ACK, 0, bytes(8)),
        frame(SETTINGS, ACK),
        frame(PRIORITY, 0, 1, bytes(5)),
        frame(GOAWAY, 0, 0, bytes(8)),
        frame(0xAA),
        window_update(0, 1),
        window_update(1, 1),
        data(1, b""),
        frame(DATA, 0x8, 1, b"\x09" + bytes(9)),
    ],
)
def test_frames_without_a_request_are_bounded(client: HalfClient, flood: bytes) -> None:
    opened(client)
    assert failure(client, *[flood] * 2_100) == ErrorCode.ENHANCE_YOUR_CALM


@pytest.mark.parametrize("flood", [frame(PING, 0, 0, bytes(8)), settings()])
def test_answers_are_bounded(client: HalfClient, flood: bytes) -> None:
    assert failure(client, *[flood] * 2_100) == ErrorCode.ENHANCE_YOUR_CALM


def test_answers_that_are_not_taken_are_bounded_in_bytes(client: HalfClient) -> None:
    events: list[Event] = []
    for _ in range(2_000):
        client.now += 1
        events += client.feed(frame(PING, 0, 0, bytes(8)))
    assert events == [ConnectionFailed(ErrorCode.ENHANCE_YOUR_CALM, "the client reads no answers")]
    assert len(client.half.take_output()) < 17_000


def test_one_settings_frame_with_many_settings_is_a_flood(client: HalfClient) -> None:
    assert failure(client, settings([(4, 1), (4, 2)] * 1_100)) == ErrorCode.ENHANCE_YOUR_CALM


def test_rapid_resets_are_bounded(client: HalfClient) -> None:
    events: list[Event] = []
    for stream in range(1, 5_000, 2):
        events += client.feed(client.headers(stream, end=True), reset(stream))
        client.half.release(stream)
    assert events[-1] == ConnectionFailed(
        ErrorCode.ENHANCE_YOUR_CALM, "too many frames without a request"
    )


def test_hundred_calls_may_time_out_at_once_and_again(client: HalfClient) -> None:
    for first in range(1, 2_000, 200):
        streams = range(first, first + 200, 2)
        events = client.feed(*[client.headers(stream, end=True) for stream in streams])
        events += client.feed(*[reset(stream) + window_update(0, 1) for stream in streams])
        assert len(events) == 200
        for stream in streams:
            client.half.release(stream)
        client.now += 2


def test_thousand_streams_at_once_are_refused_and_end_no_connection(client: HalfClient) -> None:
    events = client.feed(*[client.headers(stream, end=True) for stream in range(1, 2_000, 2)])
    refused = [event for event in events if isinstance(event, StreamReset)]
    assert len(refused) == 900
    assert {event.code for event in refused} == {ErrorCode.REFUSED_STREAM}


def test_resets_that_the_client_provokes_are_bounded(client: HalfClient) -> None:
    event: object = None
    for stream in range(1, 2_000, 2):
        *_, event = client.feed(client.headers(stream, end=True), window_update(stream, 0))
        client.half.release(stream)
        if isinstance(event, ConnectionFailed):
            break
    assert event == ConnectionFailed(
        ErrorCode.ENHANCE_YOUR_CALM, "too many frames without a request"
    )


def test_time_fills_the_budget_of_frames(either: HalfClient) -> None:
    for _ in range(5_000):
        either.now += 0.01
        assert either.feed(frame(PING, 0, 0, bytes(8))) == []
        either.take()


def test_requests_fill_the_budget_of_frames(either: HalfClient) -> None:
    for stream in range(1, 4_000, 2):
        either.feed(either.headers(stream, end=True))
        either.half.send_headers(stream, OK + TRAILERS, end=True)
        either.half.release(stream)
        assert (
            either.feed(frame(PING, 0, 0, bytes(8)), window_update(0, 1), frame(SETTINGS, ACK))
            == []
        )
        either.take()


def test_half_has_no_dictionary() -> None:
    assert not hasattr(Http2Server(), "__dict__")
