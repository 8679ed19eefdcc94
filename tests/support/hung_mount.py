"""A file system that never answers, like a FUSE or NFS mount with a hung server."""

from __future__ import annotations

import ctypes
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_LIBC = ctypes.CDLL(None, use_errno=True)
_MNT_DETACH = 2


@contextmanager
def hung_mount(directory: Path) -> Iterator[None]:
    """Mount a FUSE file system without a server over a directory (needs root).

    Each operation on it blocks until the end of the context manager closes the device.
    """
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    try:
        options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other"
        _check(_LIBC.mount(b"none", os.fsencode(directory), b"fuse", 0, options.encode()))
        try:
            yield
        finally:
            os.close(device)
            device = -1
            _check(_LIBC.umount2(os.fsencode(directory), _MNT_DETACH))
    finally:
        if device != -1:
            os.close(device)


def _check(result: int) -> None:
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
