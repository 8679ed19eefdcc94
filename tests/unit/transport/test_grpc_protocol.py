"""The rules of gRPC over HTTP/2: header blocks of requests, messages, and ends of calls."""

from __future__ import annotations

import math
from urllib.parse import unquote

import pytest

from agent.errors import ResponseSizeError
from agent.transport.grpc_protocol import (
    DETAILS_BYTES,
    PATH_CHARS,
    RESPONSE_HEADERS,
    TRAILERS_OK,
    MessageReader,
    frame_message,
    http_headers,
    metadata,
    parse_timeout,
    percent_encode,
    read_request,
    trailers,
    trailers_only,
    whole_message,
)
from agent.transport.half import Headers
from agent.transport.header_blocks import EMPTY_TABLE, decode
from agent.transport.service import StatusCode, StatusError
from tests.unit.transport.conftest import REQUEST, request_headers

LIMIT = 10
HELLO = frame_message(b"hello")


def fields(block: bytes) -> list[tuple[bytes, bytes]]:
    return list(decode(EMPTY_TABLE, block, max_list_bytes=65536, max_fields=64).fields)


# --- header blocks of requests -------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {b"content-type": b"application/grpc+proto"},
        {b"content-type": b"application/grpc;charset=utf-8"},
        {b"content-type": b"Application/GRPC"},
        {b"grpc-encoding": b"identity"},
        {b":authority": b""},
        {b":authority": None},
        {b":scheme": b"https"},
        {b"user-agent": None, b"grpc-accept-encoding": b"gzip"},
    ],
)
def test_a_request_by_the_document_is_accepted(changes: dict[bytes, bytes | None]) -> None:
    request = read_request(request_headers(changes))
    assert request.refusal is None
    assert (request.path, request.timeout) == (REQUEST[b":path"], math.inf)


@pytest.mark.parametrize(
    ("changes", "http_status", "code"),
    [
        ({b":method": b"GET"}, 405, StatusCode.INVALID_ARGUMENT),
        ({b":method": b"PUT"}, 405, StatusCode.INVALID_ARGUMENT),
        ({b"content-type": None}, 415, StatusCode.INVALID_ARGUMENT),
        ({b"content-type": b"application/json"}, 415, StatusCode.INVALID_ARGUMENT),
        ({b"content-type": b"application/grpc-web"}, 415, StatusCode.INVALID_ARGUMENT),
        ({b"content-type": b"text/application/grpc"}, 415, StatusCode.INVALID_ARGUMENT),
        ({b"te": None}, 200, StatusCode.INVALID_ARGUMENT),
        ({b"te": b"gzip"}, 200, StatusCode.INVALID_ARGUMENT),
        ({b"grpc-timeout": b"soon"}, 200, StatusCode.INVALID_ARGUMENT),
        ({b"grpc-encoding": b"gzip"}, 200, StatusCode.UNIMPLEMENTED),
    ],
)
def test_a_request_that_breaks_the_document_is_refused(
    changes: dict[bytes, bytes | None], http_status: int, code: StatusCode
) -> None:
    refusal = read_request(request_headers(changes)).refusal
    assert refusal is not None
    assert (refusal.http_status, refusal.code) == (http_status, code)
    assert str(refusal.error()) == refusal.details


def test_a_refused_encoding_comes_with_the_accepted_one() -> None:
    refusal = read_request(request_headers({b"grpc-encoding": b"gzip"})).refusal
    assert refusal is not None
    assert (b"grpc-accept-encoding", b"identity") in fields(trailers_only(refusal.error()))


def test_equal_header_blocks_are_read_once() -> None:
    headers = request_headers({})
    assert read_request(headers) is read_request(headers)


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        (b"2H", 7200),
        (b"3M", 180),
        (b"4S", 4),
        (b"5m", 0.005),
        (b"6u", 0.000006),
        (b"7n", 0.000000007),
        (b"0n", 0),
        (b"00000001S", 1),
        (b"99999999H", 99999999 * 3600),
    ],
)
def test_a_timeout_has_a_value_and_a_unit(written: bytes, seconds: float) -> None:
    assert parse_timeout(written) == pytest.approx(seconds)
    assert read_request(request_headers({b"grpc-timeout": written})).timeout == pytest.approx(
        seconds
    )


@pytest.mark.parametrize(
    "written",
    [
        *(b"", b"S", b"1", b"1s", b"1h", b"-1S", b"+1S", b"1.5S", b" 1S", b"1S\n", b"1SS"),
        *(b"100000000n", "٣S".encode()),
    ],
)
def test_a_malformed_timeout_is_refused(written: bytes) -> None:
    with pytest.raises(ValueError, match="grpc-timeout"):
        parse_timeout(written)


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        (b"/a.B/C", "/a.B/C"),
        (b"", "(none)"),
        (b"/\xff\x1b[2J", "/\\xff\\x1b[2J"),
        ("/é".encode(), "/\\xc3\\xa9"),
        (b"/" + b"x" * 9000, "/" + "x" * (PATH_CHARS - 1)),
        (b"\x01" * 9000, ("\\x01" * PATH_CHARS)[:PATH_CHARS]),
    ],
)
def test_a_path_is_shown_short_and_without_control_characters(path: bytes, shown: str) -> None:
    assert read_request(request_headers({b":path": path})).printable_path == shown


def test_metadata_has_all_values_of_a_field_in_order() -> None:
    headers = Headers(((b"a", b"1"), (b"b", b"2"), (b"a", b"\xff")))
    assert metadata(headers, "a") == ("1", "ÿ")
    assert metadata(headers, "c") == ()


# --- messages ------------------------------------------------------------------------------------


def reader(*parts: bytes) -> MessageReader:
    made = MessageReader(LIMIT)
    for part in parts:
        made.feed(part)
    return made


def test_a_message_has_its_length_in_front() -> None:
    assert frame_message(b"ab" * 200) == b"\0\0\0\1\x90" + b"ab" * 200


def test_a_response_above_the_limit_is_not_framed() -> None:
    assert frame_message(b"abc", 3)
    with pytest.raises(ResponseSizeError, match=r"4 bytes, and limits\.response_bytes allows 3"):
        frame_message(b"abcd", 3)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (HELLO, b"hello"),
        (frame_message(b""), b""),
        (b"", None),
        (HELLO[:-1], None),
        (HELLO + b"\0", None),
        (b"\1" + HELLO[1:], None),
        (frame_message(b"x" * LIMIT), b"x" * LIMIT),
        (frame_message(b"x" * (LIMIT + 1)), None),
    ],
)
def test_a_body_of_exactly_one_allowed_message_is_taken_whole(
    body: bytes, message: bytes | None
) -> None:
    assert whole_message(body, LIMIT) == message


def test_a_reader_finds_messages_that_are_cut_anywhere() -> None:
    body = HELLO + frame_message(b"") + frame_message(b"you")
    for cut in range(len(body)):
        made = reader(body[:cut])
        taken = [message for _ in range(4) if (message := made.take()) is not None]
        made.feed(body[cut:])
        taken += [message for _ in range(4) if (message := made.take()) is not None]
        assert taken == [b"hello", b"", b"you"]
        assert len(made) == 0
        made.check_ended()


def test_a_reader_holds_the_bytes_that_were_not_taken() -> None:
    made = reader(HELLO, HELLO[:3])
    assert len(made) == 13
    assert made.take() == b"hello"
    assert len(made) == 3
    with pytest.raises(StatusError, match="middle of a message") as raised:
        made.check_ended()
    assert raised.value.code is StatusCode.INTERNAL


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", StatusCode.UNIMPLEMENTED),
        (HELLO[:4], StatusCode.INTERNAL),
        (HELLO[:-1], StatusCode.INTERNAL),
        (HELLO + HELLO, StatusCode.UNIMPLEMENTED),
        (HELLO + b"\0", StatusCode.UNIMPLEMENTED),
        (b"\1" + HELLO[1:], StatusCode.INTERNAL),
        (b"\2" + HELLO[1:], StatusCode.INTERNAL),
        (frame_message(b"x" * (LIMIT + 1)), StatusCode.RESOURCE_EXHAUSTED),
        (b"\0\xff\xff\xff\xff", StatusCode.RESOURCE_EXHAUSTED),
    ],
)
def test_a_body_that_is_not_one_allowed_message_is_refused(body: bytes, code: StatusCode) -> None:
    with pytest.raises(StatusError) as raised:
        reader(body).take_single()
    assert raised.value.code is code


def test_a_single_message_is_taken_from_its_parts() -> None:
    assert reader(HELLO[:2], HELLO[2:7], HELLO[7:]).take_single() == b"hello"


@pytest.mark.parametrize(
    "body", [b"\0\0\1\0\0", b"\1\0\0\0\1", HELLO + b"\0", frame_message(b"") + b"\0"]
)
def test_a_body_that_will_be_refused_is_refused_before_it_ends(body: bytes) -> None:
    made = reader(body[:4])
    if body[:1] == b"\0":
        made.check_single()
    made.feed(body[4:])
    with pytest.raises(StatusError):
        made.check_single()


# --- ends of calls -------------------------------------------------------------------------------


def test_a_response_has_the_status_200_and_the_content_type_of_grpc() -> None:
    assert fields(RESPONSE_HEADERS) == [
        (b":status", b"200"),
        (b"content-type", b"application/grpc"),
    ]
    assert fields(TRAILERS_OK) == [(b"grpc-status", b"0")]


def test_trailers_have_the_code_the_text_and_the_metadata() -> None:
    error = StatusError(StatusCode.UNAVAILABLE, "try again", (("retry", "7"),))
    assert fields(trailers(error)) == [
        (b"grpc-status", b"14"),
        (b"grpc-message", b"try again"),
        (b"retry", b"7"),
    ]


def test_trailers_without_a_text_have_no_message() -> None:
    assert fields(trailers(StatusError(StatusCode.CANCELLED, ""))) == [(b"grpc-status", b"1")]


def test_a_response_of_trailers_only_has_everything_in_one_block() -> None:
    error = StatusError(StatusCode.NOT_FOUND, "none")
    rest = [
        (b"content-type", b"application/grpc"),
        (b"grpc-status", b"5"),
        (b"grpc-message", b"none"),
    ]
    assert fields(trailers_only(error)) == [(b":status", b"200"), *rest]


def test_a_response_that_is_none_of_grpc_has_a_text() -> None:
    assert fields(http_headers(415)) == [(b":status", b"415"), (b"content-type", b"text/plain")]


@pytest.mark.parametrize(
    ("text", "coded"),
    [
        ("plain ~ text!", b"plain ~ text!"),
        ("100 %", b"100 %25"),
        ("%41", b"%2541"),
        ("two\r\nlines\0", b"two%0D%0Alines%00"),
        ("\x7f", b"%7F"),
        ("é☂", b"%C3%A9%E2%98%82"),
        ("\udcff", b"\\udcff"),
    ],
)
def test_the_text_of_a_status_is_percent_encoded(text: str, coded: bytes) -> None:
    assert percent_encode(text) == coded


@pytest.mark.parametrize("shift", range(12))
@pytest.mark.parametrize("character", ["x", "\n", "é", "☂", "\U0001f600"])
def test_a_long_text_is_cut_between_two_characters(character: str, shift: int) -> None:
    text = "x" * shift + character * DETAILS_BYTES * 2
    coded = percent_encode(text)
    assert DETAILS_BYTES - 12 < len(coded) <= DETAILS_BYTES
    assert text.startswith(unquote(coded.decode(), errors="strict"))
