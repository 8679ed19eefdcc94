"""Header blocks are decoded as the hpack library decodes them, or both refuse."""

from __future__ import annotations

import hpack
from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from hpack.huffman_table import decode_huffman as their_decode_huffman
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.transport.header_blocks import EMPTY_TABLE, BlockError, decode, literal
from agent.transport.huffman import HuffmanError, decode_huffman

LARGE = {"max_list_bytes": 1 << 20, "max_fields": 1 << 20}
names = st.sampled_from([b"te", b":path", b"x-name", b"grpc-timeout"]) | st.binary(max_size=20)
fields = st.lists(st.tuples(names, st.binary(max_size=300)), max_size=8)


def by_hpack(decoder: hpack.Decoder, block: bytes) -> list[tuple[bytes, bytes]]:
    return [(bytes(name), bytes(value)) for name, value in decoder.decode(block, raw=True)]


@given(
    blocks=st.lists(st.tuples(fields, st.booleans(), st.none() | st.integers(0, 4096)), max_size=8)
)
def test_blocks_of_an_encoder_are_decoded(
    blocks: list[tuple[list[tuple[bytes, bytes]], bool, int | None]],
) -> None:
    encoder, table = hpack.Encoder(), EMPTY_TABLE
    for expected, huffman, size in blocks:
        if size is not None:
            encoder.header_table_size = size
        read = decode(table, encoder.encode(expected, huffman=huffman), **LARGE)
        table = read.table
        assert read.fields == tuple(expected)
        assert table.size == sum(32 + len(name) + len(value) for name, value in table.fields)
        assert table.size <= table.limit == encoder.header_table_size


@settings(max_examples=500)
@given(
    blocks=st.lists(
        st.binary(max_size=60)
        | st.builds(
            lambda block, at, byte: block[: at % (len(block) + 1)] + byte + block[at:],
            fields.map(lambda drawn: hpack.Encoder().encode(drawn)),
            st.integers(0, 400),
            st.binary(max_size=2),
        ),
        max_size=4,
    )
)
def test_any_bytes_are_decoded_as_hpack_decodes_them_or_both_refuse(blocks: list[bytes]) -> None:
    decoder, table = hpack.Decoder(max_header_list_size=1 << 20), EMPTY_TABLE
    for block in blocks:
        try:
            expected = [
                (bytes(name), bytes(value)) for name, value in decoder.decode(block, raw=True)
            ]
        except hpack.HPACKError:
            expected = None
        try:
            read = decode(table, block, **LARGE)
        except BlockError:
            assert expected is None
            return
        assert [*read.fields] == expected
        table = read.table


@given(st.binary(max_size=200))
def test_huffman_string_is_decoded_as_hpack_decodes_it(text: bytes) -> None:
    encoded = HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH).encode(text)
    assert decode_huffman(encoded) == text


@given(st.binary(max_size=40))
def test_any_bytes_are_a_huffman_string_for_both_or_neither(text: bytes) -> None:
    try:
        expected = their_decode_huffman(text)
    except hpack.HPACKError:
        expected = None
    try:
        assert decode_huffman(text) == expected
    except HuffmanError:
        assert expected is None


@given(fields)
def test_literals_are_read_by_hpack(drawn: list[tuple[bytes, bytes]]) -> None:
    block = b"".join(literal(name, value) for name, value in drawn)
    decoder = hpack.Decoder(max_header_list_size=1 << 20)
    assert by_hpack(decoder, block) == drawn
    assert decode(EMPTY_TABLE, block, **LARGE).table is EMPTY_TABLE
