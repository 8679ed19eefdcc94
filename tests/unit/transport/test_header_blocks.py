"""HPACK: what RFC 7541 says of header blocks and tables, with hpack as the other side."""

from __future__ import annotations

import hpack
import pytest
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from hpack.table import HeaderTable

from agent.transport.header_blocks import (
    EMPTY_TABLE,
    MAX_DROPPED_FIELDS,
    STATIC_TABLE,
    Block,
    BlockError,
    ExcessError,
    Table,
    _Decoder,
    decode,
    indexed,
    literal,
    named_literal,
)
from agent.transport.huffman import _LENGTHS, HuffmanError, _codes, decode_huffman

FIELDS = [(b":method", b"POST"), (b"te", b"trailers"), (b"user-agent", b"grpc-python/1.80")]


def decoded(block: bytes, table: Table = EMPTY_TABLE, *, most: int = 64) -> Block:
    return decode(table, block, max_list_bytes=8192, max_fields=most)


def test_static_table_is_that_of_the_standard() -> None:
    assert STATIC_TABLE == HeaderTable.STATIC_TABLE


def test_huffman_code_is_that_of_the_standard() -> None:
    assert list(_LENGTHS) == REQUEST_CODES_LENGTH
    assert {symbol: int(code, 2) for code, symbol in _codes().items()} == dict(
        enumerate(REQUEST_CODES)
    )


@pytest.mark.parametrize("huffman", [False, True])
def test_block_of_another_encoder_is_decoded(huffman: bool) -> None:  # noqa: FBT001
    encoder = hpack.Encoder()
    first = decoded(encoder.encode(FIELDS, huffman=huffman))
    assert first.fields == tuple(FIELDS)
    assert first.table.fields == (FIELDS[1], FIELDS[2])
    assert first.table.size == 32 + 10 + 32 + 26
    second = decoded(encoder.encode(FIELDS, huffman=huffman), first.table)
    assert second.fields == tuple(FIELDS)
    assert second.table is first.table


def test_literals_that_are_not_indexed_leave_the_table_alone() -> None:
    block = literal(b"a", b"b") + b"\x10\x01c\x01d" + named_literal(58, b"agent") + indexed(3)
    read = decoded(block)
    assert read.fields == (
        (b"a", b"b"),
        (b"c", b"d"),
        (b"user-agent", b"agent"),
        (b":method", b"POST"),
    )
    assert read.table is EMPTY_TABLE


@pytest.mark.parametrize("length", [0, 1, 126, 127, 128, 254, 255, 300, 2_000])
def test_literal_of_any_length_is_read_by_another_decoder(length: int) -> None:
    value = b"x" * length
    block = indexed(8) + literal(b"name", value) + named_literal(31, value)
    assert hpack.Decoder().decode(block, raw=True) == [
        (b":status", b"200"),
        (b"name", value),
        (b"content-type", value),
    ]
    assert decoded(block).fields[1] == (b"name", value)


def test_oldest_fields_leave_a_full_table() -> None:
    encoder = hpack.Encoder()
    table = EMPTY_TABLE
    for number in range(100):
        table = decoded(encoder.encode([(b"name", b"%030d" % number)]), table).table
    assert table.size <= 4096
    assert table.fields[-1] == (b"name", b"%030d" % 99)
    assert table.fields[0] == (b"name", b"%030d" % 38)


def test_field_larger_than_the_table_empties_it() -> None:
    table = decoded(b"\x40\x01a\x01b").table
    large = b"\x40" + literal(b"name", b"x" * 5_000)[1:]
    read = decoded(large, table)
    assert read.fields == ((b"name", b"x" * 5_000),)
    assert read.table.fields == ()
    assert read.table.size == 0


def test_table_size_may_change_at_the_start_of_a_block() -> None:
    table = decoded(b"\x40\x01a\x01b" + b"\x40\x01c\x01d").table
    read = decoded(b"\x3f\x03\x82", table)  # 34 bytes: one field
    assert (read.table.fields, read.table.limit) == (((b"c", b"d"),), 34)
    assert decoded(b"\x20\x3f\xe1\x1f\x82", table).table.fields == ()


def test_table_that_does_not_change_stays_the_same_object() -> None:
    """Blocks are remembered by their table, and some encoders repeat its size in each block."""
    block = b"\x20\x40\x01a\x01b" + indexed(3)
    first = decoded(block)
    assert first.table != EMPTY_TABLE
    assert decoded(block, first.table).table is first.table


@pytest.mark.parametrize(
    "block",
    [
        b"\x80",  # index 0
        b"\xbe",  # an index behind the tables
        b"\xff\x80\x80\x80\x80\x01",  # a large integer
        b"\x7e\x01a",  # a name behind the tables
        b"\x82\x20",  # a table size behind a field
        b"\x3f\xe2\x1f",  # a table size above 4,096
        b"\x40",
        b"\x40\x01",
        b"\x40\x01a\x02b",
        b"\xff",
        b"\x40\x81\xff\x01b",  # a Huffman code that is cut off
        b"\x40\x84\xff\xff\xff\xff\x01b",  # EOS
        b"\x40\x82\x1f\xff\x01b",  # padding of more than seven bits
        b"\x40\x81\x18\x01b",  # padding that is not of ones
    ],
)
def test_wrong_block_is_refused(block: bytes) -> None:
    with pytest.raises(BlockError, match=r"header block|Huffman"):
        decoded(block)


def test_integer_is_bounded_in_bytes() -> None:
    with pytest.raises(BlockError, match="too large"):
        decoded(b"\xff" + b"\x80" * 1_000 + b"\x01")


def test_huffman_string_may_be_empty() -> None:
    assert decode_huffman(b"") == b""
    with pytest.raises(HuffmanError):
        decode_huffman(b"\xff")


def test_fields_beyond_the_bounds_are_dropped_and_change_the_table() -> None:
    block = b"\x40\x01a" + literal(b"", b"x" * 3_000)[2:] + b"\xbe" * 100 + b"\x40\x01c\x01d"
    read = decoded(block)
    assert read.is_too_large
    assert len(read.fields) == 2
    assert read.table.fields[-1] == (b"c", b"d")
    assert decoded(indexed(2) * 4, most=3).is_too_large
    assert not decoded(indexed(2) * 4, most=4).is_too_large


SMALL_FIELDS = {
    "indexed": indexed(2),
    "of the table": b"\xbe",
    "added": b"\x41\0",
    "literal": b"\x01\0",
    "of a long index": b"\xff\0",
}


@pytest.mark.parametrize("kind", SMALL_FIELDS)
def test_block_of_far_too_many_fields_is_read_no_further(kind: str) -> None:
    table = decoded(b"".join(b"\x40\x01a\x01" + bytes([n]) for n in range(120))).table
    kept = table.fields[-1]
    most = 64 + MAX_DROPPED_FIELDS
    assert decoded(SMALL_FIELDS[kind] * most, table).is_too_large
    with pytest.raises(ExcessError):
        decoded(SMALL_FIELDS[kind] * (most + 1) + b"\x80", table)  # index 0 is never read
    assert table.fields[-1] == kept


def test_block_of_far_too_many_table_sizes_is_read_no_further() -> None:
    assert decoded(b"\x20" * MAX_DROPPED_FIELDS).table.limit == 0
    with pytest.raises(ExcessError):
        decoded(b"\x20" * (MAX_DROPPED_FIELDS + 1) + b"\x80")


def test_block_adds_fields_to_one_list(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of the table for each added field costs a hundred times what the field costs."""
    lists: list[object] = []
    read = _Decoder.read

    def noted(self: _Decoder, block: bytes, at: int) -> tuple[tuple[bytes, bytes], int]:
        result = read(self, block, at)
        lists.append(self._fields)
        return result

    monkeypatch.setattr(_Decoder, "read", noted)
    table = decoded(b"\x41\0" * 120).table
    lists.clear()
    after = decoded(b"\x41\0" * 200, table)
    assert len(lists) == 200
    assert len({id(each) for each in lists}) == 1
    assert after.table.fields == ((b":authority", b""),) * (4096 // 42)
    assert after.table.size == 4096 // 42 * 42
