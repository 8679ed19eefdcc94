"""The rules of RFC 9113 sections 8.2 and 8.3 for requests, and the memo of header blocks."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final, TypeAlias

from agent.transport.half import Headers
from agent.transport.header_blocks import decode

if TYPE_CHECKING:
    from collections.abc import Callable

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

# Section 8.2.1, for names in a request: lower case, and no bytes of controls, space or DEL up.
_NAME = re.compile(rb"[!-9;-@\[-~]+")
# NUL, CR and LF are nowhere in a value, blanks neither first nor last.
_VALUE = re.compile(rb"(?![ \t])[^\0\r\n]*(?<![ \t])")
_DIGITS = re.compile(rb"[0-9]{1,18}")
_CONNECTION_SPECIFIC = frozenset(  # section 8.2.2
    {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"}
)
_PSEUDO = frozenset({b":authority", b":method", b":path", b":scheme"})
_REQUIRED = frozenset({b":method", b":path", b":scheme"})
NO_LENGTH: Final = -1


class _RuleError(Exception):
    """A request breaks a rule: it is malformed (section 8.1.1)."""


@dataclass(frozen=True, slots=True, eq=False)
class ReadBlock:
    """A header block, decoded and checked once for all connections that send it."""

    headers: Headers
    table: Table
    """The client's table after the block."""
    is_too_large: bool
    fault: str
    """Why it is no request; empty if it is one."""
    content_length: int
    """Of the request, or NO_LENGTH."""
    trailer_fault: str
    """Why it is no trailer section; empty if it is one."""


def read_block(table: Table, block: bytes) -> ReadBlock:
    """Decode and check a header block. Equal small blocks share one result.

    Raises:
        BlockError: the block is not HPACK.
    """
    return _remembered(table, block) if len(block) <= MEMO_BLOCK_BYTES else _read(table, block)


def _read(table: Table, block: bytes) -> ReadBlock:
    fields, after, is_too_large = decode(
        table, block, max_list_bytes=MAX_LIST_BYTES, max_fields=MAX_FIELDS
    )
    fault, trailer_fault = _fault(_check_request, fields), _fault(_check_trailers, fields)
    length = NO_LENGTH if fault else _content_length(fields)
    return ReadBlock(Headers(fields), after, is_too_large, fault, length, trailer_fault)


_remembered = lru_cache(maxsize=MEMO_ENTRIES)(_read)


def _fault(check: Callable[[Fields], object], fields: Fields) -> str:
    try:
        check(fields)
    except _RuleError as error:
        return str(error)
    return ""


def _check_request(fields: Fields) -> None:
    _check_pseudo_fields(fields)
    _check_fields(fields)
    _content_length(fields)


def _check_trailers(fields: Fields) -> None:
    if any(name.startswith(b":") for name, _ in fields):
        raise _RuleError("trailers have a pseudo-header field")
    _check_fields(fields)


def _check_pseudo_fields(fields: Fields) -> None:
    # Section 8.3.
    pseudo: dict[bytes, bytes] = {}
    has_regular = False
    for name, value in fields:
        if not name.startswith(b":"):
            has_regular = True
        elif has_regular:
            raise _RuleError("a pseudo-header field follows a regular one")
        elif name in pseudo:
            raise _RuleError("a pseudo-header field comes twice")
        elif name not in _PSEUDO:
            raise _RuleError("a pseudo-header field is unknown")
        else:
            pseudo[name] = value
    if pseudo.get(b":method") == b"CONNECT":  # section 8.5
        if pseudo.keys() != {b":method", b":authority"}:
            raise _RuleError("CONNECT has wrong pseudo-header fields")
    elif not pseudo.keys() >= _REQUIRED:
        raise _RuleError("a pseudo-header field is missing")
    elif not pseudo[b":path"]:
        raise _RuleError(":path is empty")


def _check_fields(fields: Fields) -> None:
    # Sections 8.2.1 and 8.2.2. A host that differs from :authority is no concern: neither is used.
    for name, value in fields:
        if not _NAME.fullmatch(name, 1 if name.startswith(b":") else 0):
            raise _RuleError("a field name has a character that is not allowed")
        if not _VALUE.fullmatch(value):
            raise _RuleError("a field value has a character that is not allowed")
        if name in _CONNECTION_SPECIFIC:
            raise _RuleError("a field belongs to HTTP/1.1")
        if name == b"te" and value != b"trailers":
            raise _RuleError("te is not trailers")


def _content_length(fields: Fields) -> int:
    # Section 8.1.1. Equal values may be repeated (RFC 9110 section 8.6).
    lengths = {value for name, value in fields if name == b"content-length"}
    if not lengths:
        return NO_LENGTH
    length = lengths.pop()
    if lengths or not _DIGITS.fullmatch(length):
        raise _RuleError("content-length is no number")
    return int(length)
