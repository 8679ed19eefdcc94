"""Disks that are small, full, read-only, or lose power (needs root)."""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import subprocess
import tempfile
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

# linux/fs.h, FS_IOC_SHUTDOWN: the file system stops at once and writes nothing, not its journal.
_SHUTDOWN = 0x8004587D
_NO_LOG_FLUSH = 2
# The weakest mode of ext4 (ext4(5)): data may reach the disk long after the name of its file.
_LAX = "loop,data=writeback,noauto_da_alloc"


@contextmanager
def small_disk(size: str) -> Iterator[Path]:
    """Mount a file system of this size."""
    with _mount_point() as where:
        _run("mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "tmpfs", where)
        try:
            yield where
        finally:
            _run("umount", where)


def fill(where: Path) -> Path:
    """Write a file that takes all free space, and return it."""
    filling = where / "filling"
    with filling.open("wb", buffering=0) as file:
        for size in (4096, 1):
            try:
                while file.write(b"x" * size):
                    pass
            except OSError:
                continue
    return filling


def remount(where: Path, mode: str) -> None:
    """Remount a file system `ro` or `rw`."""
    _run("mount", "-o", f"remount,{mode}", where)


class Disk:
    """An ext4 file system in a file below `images`, mounted at `where`."""

    def __init__(self, images: Path, where: Path) -> None:
        self.where = where
        self._images = images
        self._boots = 0
        with self._image.open("wb") as image:
            image.truncate(16 << 20)
        _run("mkfs.ext4", "-q", "-F", self._image)
        self._mount()

    def reboot(self) -> None:
        """Mount it again after a power cut: the journal is replayed, unsynced data is lost.

        Mounts a copy, because another mount namespace may still hold the former file system.
        """
        former = self._image
        self._boots += 1
        shutil.copyfile(former, self._image)
        self.close()
        self._mount()

    def close(self) -> None:
        """Unmount it."""
        _run("umount", self.where)

    @property
    def _image(self) -> Path:
        return self._images / f"disk{self._boots}"

    def _mount(self) -> None:
        _run("mount", "-o", _LAX, self._image, self.where)


@contextmanager
def disk() -> Iterator[Disk]:
    """A new disk, mounted."""
    with _mount_point() as images, _mount_point() as where, closing(Disk(images, where)) as made:
        yield made


def cut_power(where: str) -> None:
    """Stop the file system at this mount point: no further write reaches the disk."""
    descriptor = os.open(where, os.O_RDONLY)
    try:
        fcntl.ioctl(descriptor, _SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
    finally:
        os.close(descriptor)


@contextmanager
def _mount_point() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="vouchd-", dir="/tmp") as name:
        yield Path(name)


def _run(*command: object) -> None:
    subprocess.run([*map(str, command)], check=True)
