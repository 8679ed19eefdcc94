"""An io_uring of this process: writes to a socket that the kernel makes later (io_uring(7))."""

from __future__ import annotations

import ctypes
import mmap
import os
import select
import struct

_SETUP, _ENTER, _REGISTER = 425, 426, 427
_OFFSET_OF_ENTRIES = 0x10000000
_SQPOLL, _WAKE_UP = 1 << 1, 1 << 1
_LINK = 1 << 2
_WRITE_FIXED, _POLL_ADD = 5, 6
_REGISTER_BUFFERS = 0
_PARAMETERS = struct.Struct("10I8IQ8IQ")
_ENTRY = struct.Struct("<BBHiQQIIQHHiQQ")
_ENTRIES = 8

_LIBC = ctypes.CDLL(None, use_errno=True)
# The seventh argument of syscall(2) is on the stack: all its bytes must be set.
_NONE = ctypes.c_long(0)


class Ring:
    """A submission queue, and one registered buffer that others may share.

    Registered pages stay pinned whatever becomes of the process's memory.

    Args:
        buffer: shared memory.
        polled: whether a kernel thread submits entries by itself (SQPOLL).
    """

    def __init__(self, buffer: mmap.mmap, *, polled: bool = False) -> None:
        flags = _SQPOLL if polled else 0
        # A poller that sleeps would need a wake-up of its own: ten seconds are enough.
        raw = ctypes.create_string_buffer(
            _PARAMETERS.pack(0, 0, flags, 0, 10_000, *[0] * 5, *[0] * 9, *[0] * 9)
        )
        self.descriptor = _check(_LIBC.syscall(_SETUP, _ENTRIES, raw))
        found = _PARAMETERS.unpack(raw.raw[: _PARAMETERS.size])
        _head, self._tail, _mask, _entries, _flags, _dropped, self._array, _ = found[10:18]
        ring_bytes = self._array + 4 * found[0]
        self._ring = mmap.mmap(self.descriptor, ring_bytes)
        self._entries = mmap.mmap(self.descriptor, 64 * found[0], offset=_OFFSET_OF_ENTRIES)
        self._count = 0
        self._polled = polled
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
        self._size = len(buffer)
        vector = struct.pack("QQ", self._address, self._size)
        _check(_LIBC.syscall(_REGISTER, self.descriptor, _REGISTER_BUFFERS, vector, 1))

    def add_write(self, descriptor: int) -> None:
        """Add a write of the whole buffer."""
        self._add(_WRITE_FIXED, 0, descriptor, self._address, self._size, 0)

    def add_wait(self, descriptor: int) -> None:
        """Add a wait until this descriptor is readable; the next entry begins then."""
        self._add(_POLL_ADD, _LINK, descriptor, 0, 0, select.POLLIN)

    def submit(self) -> None:
        """Let the kernel see the entries."""
        self._ring[self._tail : self._tail + 4] = self._count.to_bytes(4, "little")
        if self._polled:
            _LIBC.syscall(_ENTER, self.descriptor, 0, 0, _WAKE_UP, None, _NONE)
        else:
            _check(_LIBC.syscall(_ENTER, self.descriptor, self._count, 0, 0, None, _NONE))

    def keep_over_exec(self) -> None:
        """Let a program that this process executes keep the ring."""
        os.set_inheritable(self.descriptor, True)

    def _add(
        self, code: int, flags: int, descriptor: int, address: int, size: int, events: int
    ) -> None:
        entry = _ENTRY.pack(code, flags, 0, descriptor, 0, address, size, events, 0, 0, 0, 0, 0, 0)
        at, index = 64 * self._count, self._count
        self._entries[at : at + 64] = entry
        place = self._array + 4 * index
        self._ring[place : place + 4] = index.to_bytes(4, "little")
        self._count += 1


def _check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
