"""HPACK (RFC 7541): decode header blocks as a pure function of table and block; encode literals.

A dynamic table is an immutable value. Connections share tables, and so one memo of decoded blocks
serves all of them (`agent.transport.request_rules`): clients send the same few blocks again and
again. A block that is new, since it has a new deadline, takes 0.3 of the processor time that
hpack's decoder takes for it. What the agent sends uses no dynamic table: its blocks are constants.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from agent.transport.huffman import HuffmanError, decode_huffman

if TYPE_CHECKING:
    from collections.abc import Sequence

Field: TypeAlias = tuple[bytes, bytes]

# Section 4.1: what an entry counts besides its name and value.
FIELD_OVERHEAD: Final = 32
# Section 4.2: the default of SETTINGS_HEADER_TABLE_SIZE, which the agent leaves as it is.
TABLE_BYTES: Final = 4096
MAX_DROPPED_FIELDS: Final = 192
"""Fields beyond the bounds of a list that one block may have: each costs time, and is dropped."""
# Section 5.1: an integer of a block that fits its limits needs at most four bytes more.
_HIGHEST_SHIFT = 21
_MORE = 0x80  # in each byte of an integer but the last
# Section 6.1: an index, and one of more than a byte. Section 6.3: the first bits of a table size.
_INDEXED, _LONG_INDEX = 0x80, 0xFF
_SIZE_BITS, _SIZE_UPDATE = 0xE0, 0x20
NO_TABLE: Final = bytes([_SIZE_UPDATE])
"""The update to a table of zero bytes, for the beginning of a block."""

# Appendix A, in its order.
_STATIC = """\
:authority
:method GET
:method POST
:path /
:path /index.html
:scheme http
:scheme https
:status 200
:status 204
:status 206
:status 304
:status 400
:status 404
:status 500
accept-charset
accept-encoding gzip, deflate
accept-language
accept-ranges
accept
access-control-allow-origin
age
allow
authorization
cache-control
content-disposition
content-encoding
content-language
content-length
content-location
content-range
content-type
cookie
date
etag
expect
expires
from
host
if-match
if-modified-since
if-none-match
if-range
if-unmodified-since
last-modified
link
location
max-forwards
proxy-authenticate
proxy-authorization
range
referer
refresh
retry-after
server
set-cookie
strict-transport-security
transfer-encoding
user-agent
vary
via
www-authenticate
"""


def _static_field(line: str) -> Field:
    name, _, value = line.partition(" ")
    return name.encode(), value.encode()


STATIC_TABLE: Final = tuple(map(_static_field, _STATIC.splitlines()))
_FIRST_DYNAMIC = len(STATIC_TABLE) + 1


class BlockError(Exception):
    """A header block cannot be decoded: the connection is lost (RFC 9113 section 4.3)."""


class ExcessError(Exception):
    """A header block has more fields than the agent reads: the connection is lost."""


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """A dynamic table, a value that connections share.

    Tables differ if they are not the same object: a memo hashes them by identity.
    """

    fields: tuple[Field, ...] = ()
    """The oldest first, so that a new one is appended."""
    size: int = 0
    limit: int = TABLE_BYTES
    """The size that the client's encoder chose."""


EMPTY_TABLE: Final = Table()


class Block(NamedTuple):
    """A decoded block: its fields, and the table after it."""

    fields: tuple[Field, ...]
    table: Table
    is_too_large: bool
    """Whether the list had more fields or bytes than allowed. The rest of them is dropped."""


def decode(table: Table, block: bytes, *, max_list_bytes: int, max_fields: int) -> Block:
    """Decode a header block, in a time that grows with its length.

    Args:
        table: the dynamic table of the client's encoder before this block.
        block: the whole block, without the frame headers.
        max_list_bytes: the bytes of names and values, and 32 for each field, that are kept.
        max_fields: the number of fields that are kept.

    Raises:
        BlockError: the block is not HPACK.
        ExcessError: it has more than MAX_DROPPED_FIELDS fields beyond those that are kept.
    """
    decoder = _Decoder(table)
    look_up = decoder.look_up
    fields: list[Field] = []
    room, dropped, at, end = max_list_bytes, 0, 0, len(block)
    try:
        while at < end:
            first = block[at]
            if _INDEXED < first < _LONG_INDEX:  # most fields
                field = look_up(first & 0x7F)
                at += 1
            elif first & _SIZE_BITS != _SIZE_UPDATE:
                field, at = decoder.read(block, at)
            elif room == max_list_bytes:
                at = decoder.resize(block, at)
                continue
            else:
                raise BlockError("a header block changes the size of its table behind a field")
            room -= FIELD_OVERHEAD + len(field[0]) + len(field[1])
            if room >= 0 and len(fields) < max_fields:
                fields.append(field)
            else:
                room = -1
                dropped += 1
                if dropped > MAX_DROPPED_FIELDS:
                    raise ExcessError("a header block has too many fields")
    except IndexError:
        raise BlockError("a header block is cut off") from None
    return Block(tuple(fields), decoder.table(), room < 0)


class _Decoder:
    """Reads the fields of one block, and keeps the table as it changes."""

    __slots__ = ("_before", "_fields", "_head", "_limit", "_resized", "_size")

    def __init__(self, before: Table) -> None:
        self._before = before
        self._fields: Sequence[Field] = before.fields
        self._head = 0  # the fields before it are evicted
        self._size = before.size
        self._limit = before.limit
        self._resized = 0

    def table(self) -> Table:
        """Return the table as it is now: the same object if nothing changed."""
        before = self._before
        fields = before.fields
        if self._fields is not fields or self._head:
            fields = tuple(self._fields[self._head :])
        # Some encoders repeat the size of the table in each block.
        if fields == before.fields and self._limit == before.limit:
            return before
        return Table(fields, self._size, self._limit)

    def look_up(self, index: int) -> Field:
        """Return the field of an index (section 2.3.3).

        Raises:
            BlockError: neither table has it.
        """
        if index < _FIRST_DYNAMIC:
            if index:
                return STATIC_TABLE[index - 1]
        elif index - _FIRST_DYNAMIC < len(self._fields) - self._head:
            return self._fields[_FIRST_DYNAMIC - index - 1]
        raise BlockError("an index of a header block is in no table")

    def read(self, block: bytes, at: int) -> tuple[Field, int]:
        """Read the field at a place; return it and the next place.

        Raises:
            BlockError: it is none.
            IndexError: the block ends within it.
        """
        first = block[at]
        if first & _INDEXED:  # section 6.1
            index, at = _read_integer(block, at, 0x7F)
            return self.look_up(index), at
        is_added = first & 0x40  # section 6.2.1
        index, at = _read_integer(block, at, 0x3F if is_added else 0x0F)
        if index:
            name = self.look_up(index)[0]
        else:
            name, at = _read_string(block, at)
        value, at = _read_string(block, at)
        field = (name, value)
        if is_added:
            self._add(field)
        return field, at

    def resize(self, block: bytes, at: int) -> int:
        """Read the size of the table at a place (section 6.3); return the next place.

        Raises:
            BlockError: the agent does not allow it.
            ExcessError: the block changes it far too often.
            IndexError: the block ends within it.
        """
        self._resized += 1
        if self._resized > MAX_DROPPED_FIELDS:  # an encoder sends two at most (section 4.2)
            raise ExcessError("a header block changes the size of its table too often")
        limit, at = _read_integer(block, at, 0x1F)
        if limit > TABLE_BYTES:
            raise BlockError("a header block makes its table too large")
        self._limit = limit
        self._evict()
        return at

    def _add(self, field: Field) -> None:
        # One list for the block: a block may add thousands of fields.
        fields = self._fields
        if not isinstance(fields, list):
            self._fields = fields = [*fields]
        fields.append(field)
        self._size += FIELD_OVERHEAD + len(field[0]) + len(field[1])
        self._evict()

    def _evict(self) -> None:
        # Section 4.4: the oldest leave. A field larger than the table empties it.
        while self._size > self._limit:
            name, value = self._fields[self._head]
            self._head += 1
            self._size -= FIELD_OVERHEAD + len(name) + len(value)


def _read_integer(block: bytes, at: int, mask: int) -> tuple[int, int]:
    # Section 5.1; `mask` has the bits of the first byte that belong to the integer.
    value = block[at] & mask
    at += 1
    if value < mask:
        return value, at
    shift = 0
    while True:
        byte = block[at]
        at += 1
        value += (byte & 0x7F) << shift
        if byte < _MORE:
            return value, at
        shift += 7
        if shift > _HIGHEST_SHIFT:
            raise BlockError("an integer of a header block is too large")


def _read_string(block: bytes, at: int) -> tuple[bytes, int]:
    # Section 5.2.
    is_huffman = block[at] & 0x80
    length, start = _read_integer(block, at, 0x7F)
    end = start + length
    text = block[start:end]
    if len(text) < length:
        raise BlockError("a header block is cut off")
    if is_huffman:
        try:
            text = decode_huffman(text)
        except HuffmanError as error:
            raise BlockError(str(error)) from None
    return text, end


def literal(name: bytes, value: bytes) -> bytes:
    """Encode a field that neither side adds to a table (section 6.2.2)."""
    return b"\0" + _string(name) + _string(value)


def named_literal(index: int, value: bytes) -> bytes:
    """Encode a field whose name is in the static table, for no table (section 6.2.2)."""
    return _integer(index, 0x0F) + _string(value)


def indexed(index: int) -> bytes:
    """Encode a field that is in the static table (section 6.1)."""
    return bytes([0x80 | index])


def _string(text: bytes) -> bytes:
    return _integer(len(text), 0x7F) + text


def _integer(value: int, mask: int) -> bytes:
    if value < mask:
        return bytes([value])
    encoded = bytearray([mask])
    value -= mask
    while value >= _MORE:
        encoded.append(value & 0x7F | _MORE)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
