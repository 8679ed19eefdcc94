"""Decode the Huffman code of HPACK (RFC 7541 section 5.2 and appendix B)."""

from __future__ import annotations

from typing import Final, NamedTuple

# Appendix B: the bits of each byte's code, and of EOS. The code is canonical: codes of equal length
# follow each other in the order of their symbols, and so the lengths are the whole table.
_LENGTHS: Final = (
    *(13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28),
    *(28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28),
    *(6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6),
    *(5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10),
    *(13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7),
    *(7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6),
    *(15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5),
    *(6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28),
    *(20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23),
    *(24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24),
    *(22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23),
    *(21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23),
    *(26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25),
    *(19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27),
    *(20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23),
    *(26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26),
    30,
)
_EOS: Final = 256
# The padding is a prefix of EOS, all ones, and shorter than a byte.
_MAX_PADDING_BITS: Final = 7


class HuffmanError(Exception):
    """A string is not of the code."""


def decode_huffman(text: bytes) -> bytes:
    """Decode a string.

    The decoder steps by four bits: no code is shorter than five, so each step ends at most one.

    Raises:
        HuffmanError: the string has EOS in it, or ends with a part of a code.
    """
    decoded = bytearray()
    append, steps = decoded.append, _STEPS
    state = 0
    for byte in text:
        state, symbol = steps[state | byte >> 4]
        if symbol is not None:
            append(symbol)
        state, symbol = steps[state | byte & 0xF]
        if symbol is not None:
            append(symbol)
    if state not in _ENDS:
        raise HuffmanError("a Huffman code is wrong or cut off")
    return bytes(decoded)


class _Machine(NamedTuple):
    steps: tuple[tuple[int, int | None], ...]
    """The next state and the symbol that ends, by state and four bits."""
    ends: frozenset[int]
    """The states in which a string may end."""


def _codes() -> dict[str, int]:
    """Return the symbols by their codes, as texts of 0 and 1."""
    codes, code, before = {}, 0, 0
    for length, symbol in sorted((length, symbol) for symbol, length in enumerate(_LENGTHS)):
        code <<= length - before
        codes[f"{code:0{length}b}"] = symbol
        code, before = code + 1, length
    return codes


def _build() -> _Machine:
    codes = _codes()
    # A state is the beginning of a code. States are numbered by 16, so that four bits add to them.
    prefixes = sorted({code[:end] for code in codes for end in range(len(code))})
    states = {prefix: 16 * number for number, prefix in enumerate(prefixes)}
    failed = 16 * len(states)
    steps = [
        _step(prefix + f"{bits:04b}", len(prefix), codes, states, failed)
        for prefix in prefixes
        for bits in range(16)
    ]
    steps += [(failed, None)] * 16
    ends = frozenset(states["1" * bits] for bits in range(_MAX_PADDING_BITS + 1))
    return _Machine(tuple(steps), ends)


def _step(
    bits: str, known: int, codes: dict[str, int], states: dict[str, int], failed: int
) -> tuple[int, int | None]:
    for end in range(known + 1, len(bits) + 1):
        symbol = codes.get(bits[:end])
        if symbol == _EOS:
            return failed, None
        if symbol is not None:
            return states[bits[end:]], symbol
    return states[bits], None


_STEPS, _ENDS = _build()
