"""Requests and trailers by RFC 9113 sections 8.1 to 8.3 and 8.5."""

from __future__ import annotations

import pytest

from agent.transport.header_blocks import EMPTY_TABLE, literal
from agent.transport.request_rules import NO_LENGTH, ReadBlock, is_trailer_section, read_block

PSEUDO = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/"), (b":authority", b"a")]


def read(*fields: tuple[bytes, bytes]) -> ReadBlock:
    return read_block(EMPTY_TABLE, b"".join(literal(*field) for field in fields))


@pytest.mark.parametrize(
    "fields",
    [
        [],
        [(b"te", b"trailers")],
        [(b"grpc-timeout", b"1S"), (b"x-bin", b"")],
        [(b"a!#$%&'*+-.^_`|~9", b"with \t blanks, \x80\xff")],
        [(b"content-length", b"7"), (b"content-length", b"7")],
        [(b"host", b"another")],
    ],
)
def test_request_is_well_formed(fields: list[tuple[bytes, bytes]]) -> None:
    assert not read(*PSEUDO, *fields).fault
    assert not read(*PSEUDO[:3], *fields).fault


@pytest.mark.parametrize(
    "field",
    [
        (b"", b"x"),
        (b":", b"x"),
        (b"Name", b"x"),
        (b"na me", b"x"),
        (b"na:me", b"x"),
        (b"na\x7fme", b"x"),
        (b"na\x80me", b"x"),
        (b"na\0me", b"x"),
        (b"name\n", b"x"),
        (b"name", b" x"),
        (b"name", b"x\t"),
        (b"name", b" "),
        (b"name", b"x\0"),
        (b"name", b"x\r\nfield: y"),
        (b"name", b"x\n"),
        (b"name", b"x\ry"),
        (b"te", b"gzip"),
        (b"connection", b"close"),
        (b"keep-alive", b"1"),
        (b"proxy-connection", b"close"),
        (b"transfer-encoding", b"chunked"),
        (b"upgrade", b"h2c"),
    ],
)
def test_field_makes_request_and_trailers_malformed(field: tuple[bytes, bytes]) -> None:
    assert read(*PSEUDO, field).fault
    assert not is_trailer_section((field,))


@pytest.mark.parametrize(
    "fields",
    [
        PSEUDO[1:],
        [PSEUDO[0], *PSEUDO[2:]],
        [*PSEUDO[:2], PSEUDO[3]],
        [*PSEUDO, (b":path", b"/")],
        [*PSEUDO, (b":status", b"200")],
        [*PSEUDO, (b":protocol", b"x")],
        [(b"te", b"trailers"), *PSEUDO],
        [*PSEUDO[:2], (b":path", b"")],
        [*PSEUDO, (b"content-length", b"-1")],
        [*PSEUDO, (b"content-length", b"")],
        [*PSEUDO, (b"content-length", b"9" * 19)],
        [*PSEUDO, (b"content-length", b"1"), (b"content-length", b"2")],
        [(b":method", b"CONNECT"), *PSEUDO[1:]],
        [(b":method", b"CONNECT")],
        [*PSEUDO[:2], (b":path", b"/\n")],
    ],
)
def test_request_is_malformed(fields: list[tuple[bytes, bytes]]) -> None:
    assert read(*fields).fault


def test_connect_has_an_authority_only() -> None:
    assert not read((b":method", b"CONNECT"), (b":authority", b"a")).fault


def test_trailers_have_no_pseudo_header_field() -> None:
    assert not is_trailer_section(((b":path", b"/"),))
    assert is_trailer_section(((b"x-checksum", b"1"),))
    assert is_trailer_section(())


def test_content_length_is_a_number() -> None:
    assert read(*PSEUDO, (b"content-length", b"42")).content_length == 42
    assert read(*PSEUDO).content_length == NO_LENGTH


def test_small_blocks_are_remembered_and_large_ones_are_not() -> None:
    small, large = (b"x-small", b"y" * 100), (b"x-large", b"y" * 600)
    assert read(*PSEUDO, small) is read(*PSEUDO, small)
    assert read(*PSEUDO, large) is not read(*PSEUDO, large)
