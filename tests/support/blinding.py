"""Keep the memory map of another process alive: read from it into memory that blocks.

A process loses its memory map when it executes a program. The map lives on while a system call of
another process uses it. Such a call takes as long as its caller likes, if it copies into a page
that userfaultfd(2) (or a FUSE server) never provides.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import select
import signal
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.support import pids

_USERFAULTFD, _PROCESS_VM_READV = 323, 310
_UFFDIO_API, _UFFDIO_REGISTER = 0xC018AA3F, 0xC020AA00
_UFFD_API, _MISSING = 0xAA, 1

_LIBC = ctypes.CDLL(None, use_errno=True)

Blinder = Callable[[int, int], object]
"""Reads from the process with a PID to an address, and so uses its memory map meanwhile."""


def read_cmdline(pid: int, address: int) -> None:
    """Read `/proc/PID/cmdline`, as every user may."""
    descriptor = os.open(f"/proc/{pid}/cmdline", os.O_RDONLY)
    _LIBC.read(descriptor, ctypes.c_void_p(address), mmap.PAGESIZE)


def read_memory(pid: int, address: int) -> None:
    """Call process_vm_readv(2), as the same user may."""
    with open(f"/proc/{pid}/maps") as maps:  # noqa: PTH123 - procfs
        start = int(maps.readline().split("-")[0], 16)
    here = (ctypes.c_size_t * 2)(address, 16)
    there = (ctypes.c_size_t * 2)(start, 16)
    # The seventh argument of syscall(2) is on the stack: all its bytes must be set.
    _LIBC.syscall(_PROCESS_VM_READV, pid, here, 1, there, 1, ctypes.c_long(0))


@contextmanager
def blinded(pid: int, blinder: Blinder, uid: int) -> Iterator[None]:
    """Keep the memory map that a process has now, for the block (needs root)."""
    reading, writing = os.pipe()
    child = pids.fork(lambda: _blind(pid, blinder, uid, writing))
    os.close(writing)
    try:
        assert os.read(reading, 1), "nothing blocks"
        yield
    finally:
        os.close(reading)
        pids.kill_and_reap(child)


def _blind(pid: int, blinder: Blinder, uid: int, blocked: int) -> None:
    faults = _LIBC.syscall(_USERFAULTFD, os.O_CLOEXEC | os.O_NONBLOCK)
    assert faults >= 0, os.strerror(ctypes.get_errno())
    fcntl.ioctl(faults, _UFFDIO_API, struct.pack("QQQ", _UFFD_API, 0, 0))
    page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    fcntl.ioctl(faults, _UFFDIO_REGISTER, struct.pack("QQQQ", address, mmap.PAGESIZE, _MISSING, 0))
    pids.become(uid)
    threading.Thread(target=blinder, args=(pid, address), daemon=True).start()
    select.select([faults], [], [])
    os.write(blocked, b"!")
    signal.pause()
