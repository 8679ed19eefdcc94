"""What one client can make the half of its connection, and the memo of all, hold and copy."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Self, SupportsIndex

import pytest

from agent.transport.half import BodyReceived, ConnectionFailed
from agent.transport.header_blocks import EMPTY_TABLE, decode
from agent.transport.request_rules import MEMO_BLOCK_BYTES, MEMO_ENTRIES, _remembered, read_block
from tests.support.half_client import (
    CONTINUATION,
    DATA,
    GOAWAY,
    HEADERS,
    PING,
    SETTINGS,
    HalfClient,
    data,
    frame,
)

KIB = 1024


class Counted(bytearray):
    """Counts the bytes that are copied into it and out of it."""

    def __init__(self) -> None:
        super().__init__()
        self.copied = 0

    def __iadd__(self, more: bytes) -> Self:  # type: ignore[override,misc]
        self.copied += len(more)
        return super().__iadd__(more)

    def __bytes__(self) -> bytes:
        self.copied += len(self)
        return bytes(memoryview(self))

    def __getitem__(self, key: SupportsIndex | slice) -> bytearray:  # type: ignore[override]
        raise AssertionError(f"a part of what is held is copied: {key}")


@pytest.mark.parametrize("chunk", [1, 10, 511, 20_000])
def test_frame_in_small_chunks_is_copied_twice_at_most(chunk: int) -> None:
    client = HalfClient()
    held = Counted()
    client.half._held = held  # type: ignore[attr-defined]
    client.feed(client.headers(1))
    sent = b"".join(data(1, bytes([n]) * 16_384) for n in range(3))
    events = []
    for at in range(0, len(sent), chunk):
        events += client.feed(sent[at : at + chunk])
    assert b"".join(event.data for event in events if isinstance(event, BodyReceived)) == b"".join(
        bytes([n]) * 16_384 for n in range(3)
    )
    assert held.copied <= 2.1 * len(sent)


def test_header_block_in_small_frames_is_copied_twice_at_most() -> None:
    client = HalfClient()
    block = Counted()
    client.half._block = block  # type: ignore[attr-defined]
    encoded = client.encoder.encode([(f"x-{n}", "y" * 20) for n in range(40)])
    client.feed(frame(HEADERS, 1, 1))
    for at in range(0, len(encoded), 3):
        client.feed(frame(CONTINUATION, 0, 1, encoded[at : at + 3]))
    client.feed(frame(CONTINUATION, 4, 1))
    assert 0 < block.copied <= 2 * len(encoded)


def peak_of(act: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        act()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", [DATA, HEADERS, SETTINGS, PING, GOAWAY, CONTINUATION, 0xAA])
def test_half_a_frame_of_any_kind_holds_a_frame_at_most(kind: int) -> None:
    client = HalfClient()
    client.feed(client.headers(1))
    half = frame(kind, 0, 1, bytes(16_384))[:-1]

    def feed() -> None:
        for at in range(0, len(half), 2):
            client.feed(half[at : at + 2])

    assert peak_of(feed) < 64 * KIB
    assert client.half.held_bytes == len(half)


def test_half_a_header_block_holds_eight_kilobytes_at_most() -> None:
    client = HalfClient()
    parts = [frame(CONTINUATION, 0, 1, b"x") for _ in range(8 * KIB)]

    def feed() -> None:
        client.feed(frame(HEADERS, 0, 1, b"x"))
        for number, part in enumerate(parts):
            if any(isinstance(event, ConnectionFailed) for event in client.feed(part)):
                assert number < 8 * KIB / 10
                return
            assert client.half.held_bytes < 8 * KIB
        raise AssertionError

    assert peak_of(feed) < 64 * KIB


def fields_of(number: int, count: int) -> bytes:
    """Return a block that adds so many small fields to the table, which no other number adds."""
    return b"".join(
        b"\x40\x03" + (1_000_000 + number * 100 + n).to_bytes(3, "big") + b"\0"
        for n in range(count)
    )


def test_table_of_a_hostile_client_takes_twenty_kilobytes_at_most() -> None:
    tables = []

    def fill() -> None:
        table = EMPTY_TABLE
        for number in range(20):
            block = fields_of(number, 80)
            table = decode(table, block, max_list_bytes=0, max_fields=0).table
        tables.append(table)
        assert len(table.fields) == 4096 // 35

    tracemalloc.start()
    fill()
    assert tracemalloc.get_traced_memory()[0] < 20 * KIB
    tracemalloc.stop()


def test_memo_filled_by_a_hostile_client_takes_six_megabytes_at_most() -> None:
    blocks = [fields_of(number, MEMO_BLOCK_BYTES // 6) for number in range(2 * MEMO_ENTRIES)]
    _remembered.cache_clear()
    tracemalloc.start()
    table = EMPTY_TABLE
    for block in blocks:
        table = read_block(table, block).table
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert _remembered.cache_info().currsize == MEMO_ENTRIES
    _remembered.cache_clear()
    assert held < 6 * KIB * KIB
