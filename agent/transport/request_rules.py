"""The rules of RFC 9113 sections 8.2 and 8.3 for requests, and the memo of header blocks."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final, TypeAlias

from agent.transport.half import Headers
from agent.transport.header_blocks import decode

if TYPE_CHECKING:
    from agent.transport.header_blocks import Field, Table

    Fields: TypeAlias = tuple[Field, ...]

MAX_LIST_BYTES: Final = 8 * 1024
"""The decoded fields of a request, as SETTINGS_MAX_HEADER_LIST_SIZE counts them."""
MAX_FIELDS: Final = 64

# The memo serves all connections, and so one user may fill it. A block of at most this many bytes
# has strings of at most 820 bytes (the shortest Huffman code has five bits), in at most 64 fields.
# The entry's table holds at most 4,096 bytes by HPACK's count, with at most 128 fields, which take
# some 20 KiB as Python objects if they are all short: 256 entries are some 6 MiB at the very worst,
# if no table shares a field with another one. Blocks of a client have some 200 bytes at first, and
# 15 later.
MEMO_BLOCK_BYTES: Final = 512
MEMO_ENTRIES: Final = 256

# Section 8.2.1: lower case, no controls, no space, no colon, nothing above ASCII.
_NAME_BYTES = bytes(set(range(0x21, 0x7F)) - set(b":") - set(range(0x41, 0x5B)))
_DIGITS = re.compile(rb"[0-9]{1,18}")
_CONNECTION_SPECIFIC = frozenset(  # section 8.2.2
    {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"}
)
_PSEUDO = frozenset({b":authority", b":method", b":path", b":scheme"})
_OF_CONNECT = frozenset({b":authority", b":method"})
_REQUIRED = frozenset({b":method", b":path", b":scheme"})
NO_LENGTH: Final = -1


class _RuleError(Exception):
    """A request breaks a rule: it is malformed (section 8.1.1)."""


@dataclass(frozen=True, slots=True, eq=False)
class ReadBlock:
    """A header block, decoded and checked as a request once for all connections that send it."""

    headers: Headers
    table: Table
    """The client's table after the block."""
    is_too_large: bool
    fault: str
    """Why it is no request; empty if it is one."""
    content_length: int
    """Of the request, or NO_LENGTH."""


def read_block(table: Table, block: bytes) -> ReadBlock:
    """Decode and check a header block. Equal small blocks share one result.

    Raises:
        BlockError: the block is not HPACK.
        ExcessError: the block has far too many fields.
    """
    return _remembered(table, block) if len(block) <= MEMO_BLOCK_BYTES else _read(table, block)


def _read(table: Table, block: bytes) -> ReadBlock:
    fields, after, is_too_large = decode(
        table, block, max_list_bytes=MAX_LIST_BYTES, max_fields=MAX_FIELDS
    )
    fault, length = "", NO_LENGTH
    try:
        length = _check_request(fields)
    except _RuleError as error:
        fault = str(error)
    return ReadBlock(Headers(fields), after, is_too_large, fault, length)


_remembered = lru_cache(maxsize=MEMO_ENTRIES)(_read)


def is_trailer_section(fields: Fields) -> bool:
    """Whether fields may follow a request's body (section 8.1)."""
    try:
        _check_values(fields)
        _check_regular_fields(fields)
    except _RuleError:
        return False
    return True


def _check_request(fields: Fields) -> int:
    # Returns the content length.
    count = 0
    for name, _ in fields:
        if not name.startswith(b":"):
            break
        count += 1
    _check_values(fields)
    _check_pseudo_fields(fields[:count])
    return _check_regular_fields(fields[count:])


def _check_pseudo_fields(fields: Fields) -> None:
    # Section 8.3.
    pseudo = dict(fields)
    if len(pseudo) < len(fields):
        raise _RuleError("a pseudo-header field comes twice")
    if not pseudo.keys() <= _PSEUDO:
        raise _RuleError("a pseudo-header field is unknown")
    if pseudo.get(b":method") == b"CONNECT":  # section 8.5
        if pseudo.keys() != _OF_CONNECT:
            raise _RuleError("CONNECT has wrong pseudo-header fields")
    elif not pseudo.keys() >= _REQUIRED:
        raise _RuleError("a pseudo-header field is missing")
    elif not pseudo[b":path"]:
        raise _RuleError(":path is empty")


def _check_regular_fields(fields: Fields) -> int:
    # Sections 8.2.1 and 8.2.2. A host that differs from :authority is no concern: neither is used.
    names = [name for name, _ in fields]
    if b"".join(names).translate(None, _NAME_BYTES) or b"" in names:
        raise _RuleError("a field name has a character that is not allowed")
    if not _CONNECTION_SPECIFIC.isdisjoint(names):
        raise _RuleError("a field belongs to HTTP/1.1")
    if b"te" in names and any(name == b"te" and value != b"trailers" for name, value in fields):
        raise _RuleError("te is not trailers")
    return _content_length(fields) if b"content-length" in names else NO_LENGTH


def _check_values(fields: Fields) -> None:
    # Section 8.2.1: NUL, CR and LF are nowhere in a value, blanks neither first nor last. All
    # values are checked at once, and all names below: each new deadline makes a new block.
    lines = b"\n".join([b"", *[value for _, value in fields], b""])
    if (
        lines.count(b"\n") > len(fields) + 1
        or b"\0" in lines
        or b"\r" in lines
        or b"\n " in lines
        or b"\n\t" in lines
        or b" \n" in lines
        or b"\t\n" in lines
    ):
        raise _RuleError("a field value has a character that is not allowed")


def _content_length(fields: Fields) -> int:
    # Section 8.1.1. Equal values may be repeated (RFC 9110 section 8.6).
    first, *others = {value for name, value in fields if name == b"content-length"}
    if others or not _DIGITS.fullmatch(first):
        raise _RuleError("content-length is no number")
    return int(first)
