"""Ways to queue bytes on a socket whose content another process sets later.

The kernel stamps a chunk with the process that queued it. It does not copy spliced pages: what the
receiver reads is what the page holds then.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import socket
import tempfile
import threading
from abc import ABC, abstractmethod
from typing import ClassVar

from tests.support.io_uring import Ring

PAGES = 4
SIZE = PAGES * mmap.PAGESIZE

_LIBC = ctypes.CDLL(None, use_errno=True)


class Way(ABC):
    """A way to queue bytes. Made before a fork, so that both processes share the bytes."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    @abstractmethod
    def queue(self, sock: socket.socket) -> None:
        """Queue the content, as the process that the kernel shall name."""

    @abstractmethod
    def change(self, content: bytes) -> None:
        """Change the content, in either process."""


class _OfAFile(Way):
    """Pages of a file in memory."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self._file = self._open()
        os.pwrite(self._file, content, 0)  # before it is queued: a hole has no page to share

    def _open(self) -> int:
        return os.memfd_create("bytes")

    def change(self, content: bytes) -> None:
        os.pwrite(self._file, content, 0)


class SendfileOfMemfd(_OfAFile):
    """sendfile(2) of a memfd."""

    def queue(self, sock: socket.socket) -> None:
        os.sendfile(sock.fileno(), self._file, 0, SIZE)


class SendfileOfFile(SendfileOfMemfd):
    """sendfile(2) of a file on disk: pages of the page cache."""

    def _open(self) -> int:
        descriptor, path = tempfile.mkstemp(dir="/tmp")
        os.unlink(path)  # noqa: PTH108 - the descriptor is what is used
        return descriptor


class SpliceOfMemfd(_OfAFile):
    """splice(2) of a memfd into a pipe, and of the pipe into the socket."""

    def queue(self, sock: socket.socket) -> None:
        reading, writing = os.pipe()
        os.splice(self._file, writing, SIZE, offset_src=0)
        _drain(reading, sock)


class SpliceOfFile(SpliceOfMemfd):
    """The same of a file on disk."""

    _open = SendfileOfFile._open


class Tee(_OfAFile):
    """tee(2): a pipe's pages in a second pipe, which is spliced into the socket."""

    def queue(self, sock: socket.socket) -> None:
        reading, writing = os.pipe()
        os.splice(self._file, writing, SIZE, offset_src=0)
        again, into = os.pipe()
        if _LIBC.tee(reading, into, SIZE, 0) != SIZE:
            raise OSError(ctypes.get_errno(), "tee")
        _drain(again, sock)


class _OfMemory(Way):
    """Pages of shared anonymous memory."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self._memory = mmap.mmap(-1, SIZE)
        self._memory[:] = content

    def change(self, content: bytes) -> None:
        self._memory[:] = content


class Vmsplice(_OfMemory):
    """vmsplice(2) of shared memory into a pipe, and splice(2) into the socket."""

    def queue(self, sock: socket.socket) -> None:
        reading, writing = os.pipe()
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        vector = (ctypes.c_size_t * 2)(address, SIZE)
        if _LIBC.vmsplice(writing, vector, 1, 0) != SIZE:
            raise OSError(ctypes.get_errno(), "vmsplice")
        _drain(reading, sock)


class RingWrite(_OfMemory):
    """A write of an io_uring that waits for a pipe, from registered pages."""

    is_polled: ClassVar = False

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self._go = os.pipe()

    def queue(self, sock: socket.socket) -> None:
        ring = Ring(self._memory, polled=self.is_polled)
        ring.add_wait(self._go[0])
        ring.add_write(sock.fileno())
        ring.submit()
        ring.keep_over_exec()
        self._ring = ring  # for as long as this process runs this program

    def change(self, content: bytes) -> None:
        super().change(content)
        os.write(self._go[1], b"!")


class PolledRingWrite(RingWrite):
    """The same with a kernel thread that submits."""

    is_polled = True


class BusyThread(_OfAFile):
    """A thread that queues the pages without end: it waits in the system call at last."""

    def queue(self, sock: socket.socket) -> None:
        def fill() -> None:
            while os.sendfile(sock.fileno(), self._file, 0, SIZE):
                filled.set()

        filled = threading.Event()
        threading.Thread(target=fill, daemon=True).start()
        filled.wait()


QUEUEING = (
    SendfileOfMemfd,
    SendfileOfFile,
    SpliceOfMemfd,
    SpliceOfFile,
    Tee,
    Vmsplice,
    BusyThread,
)
"""Ways that queue at once."""
LATER = (RingWrite, PolledRingWrite)
"""Ways that make the kernel queue later."""


def _drain(pipe: int, sock: socket.socket) -> None:
    moved = 0
    while moved < SIZE:
        moved += os.splice(pipe, sock.fileno(), SIZE - moved)
