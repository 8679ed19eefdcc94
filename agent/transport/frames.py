"""HTTP/2 frames: their kinds, flags and settings, and how one is packed (RFC 9113 section 6)."""

from __future__ import annotations

import struct
from typing import Final

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""The first bytes of a client (section 3.4)."""

DATA: Final = 0
HEADERS: Final = 1
PRIORITY: Final = 2
RST_STREAM: Final = 3
SETTINGS: Final = 4
PUSH_PROMISE: Final = 5
PING: Final = 6
GOAWAY: Final = 7
WINDOW_UPDATE: Final = 8
CONTINUATION: Final = 9

ACK: Final = 0x1
END_STREAM: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
HAS_PRIORITY: Final = 0x20

# Settings (section 6.5.2).
HEADER_TABLE_SIZE: Final = 1
ENABLE_PUSH: Final = 2
MAX_CONCURRENT_STREAMS: Final = 3
INITIAL_WINDOW_SIZE: Final = 4
MAX_FRAME_SIZE: Final = 5
MAX_HEADER_LIST_SIZE: Final = 6

HEADER_BYTES: Final = 9
PING_BYTES: Final = 8
SETTING_BYTES: Final = 6
# Section 4.2: the least that MAX_FRAME_SIZE may be, and the default.
DEFAULT_FRAME_BYTES: Final = 1 << 14
HIGHEST_FRAME_BYTES: Final = (1 << 24) - 1
# Section 6.9: the default window, and the widest.
DEFAULT_WINDOW: Final = (1 << 16) - 1
WIDEST_WINDOW: Final = (1 << 31) - 1
# Section 5.1.1: 31 bits. The bit above them is reserved and ignored.
HIGHEST_STREAM: Final = (1 << 31) - 1

HEADER: Final = struct.Struct(">HBBBI")
"""A frame header: the high and the low bits of its length, kind, flags, stream."""
KIND_PLACE: Final = 3
_SETTING = struct.Struct(">HI")


def frame_type(kind: int, flags: int = 0) -> int:
    """Return what frames of a kind and flags have in their headers, for the functions below."""
    return kind << 40 | flags << 32


def pack_header(length: int, type_: int, stream: int) -> bytes:
    """Pack the header of a frame."""
    return (length << 48 | type_ | stream).to_bytes(HEADER_BYTES, "big")


def pack_frame(type_: int, stream: int, payload: bytes = b"") -> bytes:
    """Pack a frame."""
    return pack_header(len(payload), type_, stream) + payload


def pack_number(kind: int, stream: int, number: int) -> bytes:
    """Pack a frame whose payload is one number of 32 bits: RST_STREAM or WINDOW_UPDATE."""
    return pack_frame(frame_type(kind), stream, number.to_bytes(4, "big"))


def pack_settings(settings: dict[int, int]) -> bytes:
    """Pack a SETTINGS frame."""
    payload = b"".join(_SETTING.pack(*item) for item in settings.items())
    return pack_frame(frame_type(SETTINGS), 0, payload)


def unpack_settings(payload: bytes) -> list[tuple[int, int]]:
    """Unpack the settings of a frame in their order.

    Raises:
        struct.error: the payload is no multiple of six bytes.
    """
    return list(_SETTING.iter_unpack(payload))


SETTINGS_ACK: Final = pack_frame(frame_type(SETTINGS, ACK), 0)
