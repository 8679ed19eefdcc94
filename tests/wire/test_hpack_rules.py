"""The rules of RFC 7541 that bind a decoder, and the bounds of a server's encoder.

grpcio is the control. `GRPCIO` lists where it does something else than the standard asks.
"""

from __future__ import annotations

import hpack
import pytest

from tests.support.rules import (
    CALM,
    CHECK,
    COMPRESSION_ERROR,
    PROTOCOL_ERROR,
    REFUSED_STREAM,
    Closed,
    Deviation,
    Http,
    Open,
    Reset,
    Rule,
    Status,
    block,
    call,
    check,
    deviating,
    opening,
    whole,
)
from tests.support.wire import (
    HEADER_TABLE_SIZE,
    connected,
    data,
    integer,
    literal,
    message,
    plain_block,
    request_fields,
    rst_stream,
    settings,
)
from tests.wire.conftest import Server

BLOCK = plain_block(request_fields(CHECK))
SERVED = Status(0)
UNDECODABLE = Closed(COMPRESSION_ERROR)
# An index names an entry of the dynamic table from 62 on (RFC 7541 section 2.3.3).
NEWEST = integer(62, 7, 0x80)
METHOD = literal(b":method", b"POST")
EVERY_FIELD_BUT_THE_METHOD = BLOCK.removeprefix(METHOD)
HUFFMAN = 0x80
SMALL_ENTRY = literal(b"x", b"1", first=0x40)
"""34 bytes in the table (RFC 7541 section 4.1)."""


def served(header_block: bytes) -> Rule:
    """Return a rule for a valid block."""
    return Rule(lambda _wire: whole(header_block), SERVED)


def undecodable(header_block: bytes) -> Rule:
    """Return a rule for a block that no decoder may take."""
    return Rule(lambda _wire: whole(header_block), UNDECODABLE)


def huffman(name: bytes, coded: bytes, length: int | None = None) -> bytes:
    """Return a literal field with these bytes as the Huffman code of its value."""
    size = len(coded) if length is None else length
    return b"\0" + integer(len(name), 7) + name + integer(size, 7, HUFFMAN) + coded


def resized(*sizes: int) -> bytes:
    """Return dynamic table size updates."""
    return b"".join(integer(size, 5, 0x20) for size in sizes)


RULES: dict[str, Rule] = {
    # --- 2.3.3, 6.1: indices ---
    "index 0": undecodable(b"\x80" + BLOCK),
    "index beyond an empty dynamic table": undecodable(NEWEST + BLOCK),
    "index far beyond the tables": undecodable(integer(1 << 20, 7, 0x80) + BLOCK),
    "name by an index beyond the tables": undecodable(b"\x7f\x01" + b"\x01x" + BLOCK),
    "field by the static table": served(b"\x83" + EVERY_FIELD_BUT_THE_METHOD),
    "name by the static table": served(b"\x02\x04POST" + EVERY_FIELD_BUT_THE_METHOD),
    "entry of this block by its index": served(
        METHOD
        + b"".join(
            literal(name.encode(), value.encode()) for name, value in request_fields(CHECK)[1:4]
        )
        + literal(b"content-type", b"application/grpc", first=0x40)
        + literal(b"te", b"trailers", first=0x40)
        + SMALL_ENTRY
        + NEWEST
    ),
    "name by the dynamic table": served(BLOCK + SMALL_ENTRY + integer(62, 6, 0x40) + b"\x012"),
    # --- 6.2: literals ---
    "literal that is never indexed": served(BLOCK + literal(b"x-secret", b"1", first=0x10)),
    "literal without indexing is not in the table": undecodable(
        BLOCK + literal(b"x", b"1") + NEWEST
    ),
    "literal that is never indexed is not in the table": undecodable(
        BLOCK + literal(b"x", b"1", first=0x10) + NEWEST
    ),
    # --- 4.1 to 4.4: eviction ---
    "entry larger than the table empties it": undecodable(
        resized(100) + BLOCK + SMALL_ENTRY + literal(b"y", b"v" * 68, first=0x40) + NEWEST
    ),
    "entry of exactly the table's size is kept": served(
        resized(100) + BLOCK + literal(b"y", b"v" * 67, first=0x40) + NEWEST
    ),
    "oldest entry leaves the table first": undecodable(
        resized(100)
        + BLOCK
        + SMALL_ENTRY
        + literal(b"y", b"v" * 67, first=0x40)
        + integer(63, 7, 0x80)
    ),
    # --- 4.2, 6.3: size updates ---
    "size update to nothing": served(resized(0) + BLOCK),
    "size update to the allowed size": served(resized(4096) + BLOCK),
    "two size updates": served(resized(0, 4096) + BLOCK),
    "size update above the allowed size": undecodable(resized(4097) + BLOCK),
    "size update far above the allowed size": undecodable(resized(1 << 30) + BLOCK),
    "size update behind a field": undecodable(METHOD + resized(100) + EVERY_FIELD_BUT_THE_METHOD),
    "size update at the end of a block": undecodable(BLOCK + resized(100)),
    "size update empties the table": Rule(
        lambda _wire: [
            block(1, BLOCK + SMALL_ENTRY, 0x4),
            data(1, message(b""), end=True),
            block(3, resized(0, 4096) + BLOCK + NEWEST),
        ],
        UNDECODABLE,
    ),
    "entries that do not fit after a size update": Rule(
        lambda _wire: [
            block(1, BLOCK + SMALL_ENTRY, 0x4),
            data(1, message(b""), end=True),
            block(3, resized(33) + BLOCK + NEWEST),
        ],
        UNDECODABLE,
    ),
    # --- 5.1: integers ---
    "integer with needless zero bytes": Rule(
        lambda _wire: whole(BLOCK + b"\0\x01x\x7f\x80\x80\x00" + b"v" * 127),
        SERVED,
        UNDECODABLE,  # a decoder may refuse excessive encodings
    ),
    "integer that overflows": undecodable(b"\xff" + b"\xff" * 10 + b"\x01" + BLOCK),
    "integer of many bytes": undecodable(b"\xff" + b"\x80" * 200 + b"\x01" + BLOCK),
    "length that overflows": undecodable(BLOCK + b"\0\x01x\x7f" + b"\xff" * 10 + b"\x01"),
    "integer that is cut": undecodable(BLOCK + b"\xff"),
    # --- 5.2: strings ---
    "value longer than the block": undecodable(BLOCK + b"\0\x01x\x10abc"),
    "name longer than the block": undecodable(BLOCK + b"\0\x7f\x00"),
    "name without a value": undecodable(BLOCK + b"\0\x01x"),
    "field that is cut behind its first byte": undecodable(BLOCK + b"\0"),
    "Huffman coded value": served(
        BLOCK + b"\0\x01x" + b"\x8c" + bytes.fromhex("f1e3c2e5f23a6ba0ab90f4ff")
    ),
    "Huffman coded empty value": served(BLOCK + huffman(b"x", b"")),
    "Huffman padding of one whole byte": undecodable(BLOCK + huffman(b"x", b"\x1f\xff")),
    "Huffman padding of zeros": undecodable(BLOCK + huffman(b"x", b"\x18")),
    "Huffman code with the end symbol": undecodable(BLOCK + huffman(b"x", b"\xff\xff\xff\xff")),
    "Huffman code that ends within a symbol": undecodable(BLOCK + huffman(b"x", b"\xff\xfe")),
    # --- 2.2: one context for all streams; the later call of `check` uses its entries ---
    "block of a stream that was reset counts": Rule(
        lambda wire: [opening(wire, 1, ("x-entry", "1")), rst_stream(1)], Open()
    ),
    "block of a malformed request counts": Rule(
        lambda wire: [opening(wire, 1, ("x-entry", "1"), ("connection", "close"))],
        Reset(PROTOCOL_ERROR),
    ),
    "block of trailers counts": Rule(
        lambda wire: [
            opening(wire),
            data(1, message(b"")),
            wire.headers(1, [("x-entry", "1")], end=True),
            call(wire, 3, ("x-entry", "1")),
        ],
        SERVED,
    ),
    "block of a header list that is too large counts": Rule(
        lambda wire: [opening(wire, 1, ("x-entry", "1"), *((f"x-{n}", "v") for n in range(200)))],
        Status(8),
        Http(431),
        Reset(CALM),
        Reset(REFUSED_STREAM),
    ),
}

GRPCIO: dict[str, Deviation] = {
    **deviating(
        "ends the connection without GOAWAY, or does not know padding and flags",
        Closed(None),
        "index 0",
        "index beyond an empty dynamic table",
        "index far beyond the tables",
        "name by an index beyond the tables",
        "literal without indexing is not in the table",
        "literal that is never indexed is not in the table",
        "entry larger than the table empties it",
        "oldest entry leaves the table first",
        "size update above the allowed size",
        "size update far above the allowed size",
        "size update empties the table",
        "entries that do not fit after a size update",
        "integer that overflows",
        "integer of many bytes",
        "length that overflows",
        "integer that is cut",
        "value longer than the block",
        "name longer than the block",
        "name without a value",
        "field that is cut behind its first byte",
        "Huffman padding of zeros",
        "Huffman code that ends within a symbol",
    ),
    **deviating(
        "does not check this",
        Status(0),
        "size update behind a field",
        "size update at the end of a block",
        "Huffman padding of one whole byte",
        "Huffman code with the end symbol",
    ),
    **deviating(
        "ignores the frame",
        Open(),
        "block of a malformed request counts",
        "block of a header list that is too large counts",
    ),
}

# Fields of the static table that a request may not have with an empty value: content-length,
# content-type and transfer-encoding.
_NOT_OF_A_REQUEST = {28, 31, 57}


@pytest.mark.parametrize("name", RULES, ids=list(RULES))
def test_decoder_follows(server: Server, name: str) -> None:
    check(server.path, RULES[name], GRPCIO.get(name) if server.is_control else None)


def test_deviations_of_the_control_are_of_rules() -> None:
    assert set(GRPCIO) <= set(RULES)


def test_encoder_keeps_to_a_table_of_nothing(server: Server) -> None:
    """The client's decoder has no dynamic table, and refuses every use of one."""
    with connected(server.path, table_size=0) as wire:
        wire.start((HEADER_TABLE_SIZE, 0))
        for stream in (1, 3, 5):
            wire.send(call(wire, stream))
            assert wire.until_ended(stream).grpc_status == 0


def test_encoder_follows_a_table_that_shrinks(server: Server) -> None:
    with connected(server.path) as wire:
        wire.start()
        for stream, size in ((1, 4096), (3, 100), (5, 0), (7, 4096)):
            wire.send(settings((HEADER_TABLE_SIZE, size)))
            wire.decoder.max_allowed_table_size = size
            wire.send(call(wire, stream))
            assert wire.until_ended(stream).grpc_status == 0


def test_every_static_field_is_decoded(server: Server) -> None:
    with connected(server.path) as wire:
        wire.start()
        allowed = [n for n in range(15, 62) if n not in _NOT_OF_A_REQUEST]
        indexed = b"".join(bytes([0x80 | n]) for n in allowed)
        wire.send(*whole(BLOCK + indexed))
        assert wire.until_ended(1).grpc_status in (0, 8)


def test_entries_of_one_call_serve_the_next(server: Server) -> None:
    with connected(server.path) as wire:
        wire.start()
        wire.encoder = hpack.Encoder()
        sizes = []
        for stream in (1, 3):
            request = call(wire, stream, ("x-long", "v" * 100))
            sizes.append(len(request))
            wire.send(request)
            assert wire.until_ended(stream).grpc_status == 0
        assert sizes[1] < sizes[0] - 100
