"""Where operators' entry files are, and what is to be seen there at one moment.

What may change them lies in several directories: the files, every symbolic link on the way to them,
and whatever exists of a way that ends early.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from agent.config.files import is_entry_file_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

Found: TypeAlias = "Path | os.DirEntry[str]"

# As many as the kernel follows (path_resolution(7)).
MAX_LINKS = 40


@dataclass(frozen=True, slots=True)
class View:
    """What was to be seen at one moment."""

    directories: frozenset[Path]
    """Those in which a change may be one of the files."""
    listed: frozenset[Path]
    """Those of them all of whose YAML files are read."""
    names: frozenset[str]
    """Links, places where they lead, and all directories above: whatever may move the files."""
    files: Mapping[str, tuple[int, ...]]
    """Of each file and directory what differs if its content does."""

    def concerns(self, directory: Path, name: str) -> bool:
        """Whether what happens to this name may be a change; no name is the directory itself."""
        return (
            not name
            or os.path.join(directory, name) in self.names  # noqa: PTH118 - for very many
            or (is_entry_file_name(name) and directory in self.listed)
        )


def look(paths: Iterable[Path]) -> View:
    """What is to be seen now. What cannot be looked at is as if it were not there."""
    directories: set[Path] = set()
    listed: set[Path] = set()
    names: set[Path] = set()
    files: dict[str, tuple[int, ...]] = {}
    for path in paths:
        found = inside(path)
        for way in ways(path, found):
            *links, end = places(way)
            if is_directory(end):
                listed.add(end)
            directories |= {link.parent for link in links} | {_nearest_directory(end)}
            names |= {above for place in (*links, end) for above in (place, *place.parents)}
        files |= {each.path: _identity(each) for each in found}
        files[str(path)] = _identity(path)
    return View(frozenset(directories), frozenset(listed), frozenset(map(str, names)), files)


def watched_directories(paths: Iterable[Path]) -> frozenset[Path]:
    """The existing directories in which a change may be one of what `paths` mean."""
    return look(path.absolute() for path in paths).directories


def inside(path: Path) -> list[os.DirEntry[str]]:
    """The files that are read if this is a directory, as `agent.config.files` chooses them."""
    try:
        with os.scandir(path) as every:
            return [each for each in every if is_entry_file_name(each.name)]
    except OSError:
        return []


def ways(path: Path, found: Iterable[os.DirEntry[str]]) -> Iterator[Path]:
    """The path, and the files inside it that lie somewhere else."""
    yield path
    yield from (Path(each) for each in found if each.is_symlink())


def places(path: Path) -> Iterator[Path]:
    """Where each symbolic link on the way lies; then where the way ends, whether that exists."""
    ahead = [*reversed(path.parts)]
    here = Path("/")
    links = 0
    while ahead:
        name = ahead.pop()
        here = here.parent if name == ".." else here / name
        if (target := _target(here)) and links < MAX_LINKS:
            yield here
            links += 1
            here = here.parent
            ahead += reversed(target.parts)
    yield here


def _target(path: Path) -> Path | None:
    try:
        return path.readlink()
    except (OSError, ValueError):
        return None


def _nearest_directory(path: Path) -> Path:
    return next(each for each in (path, *path.parents) if is_directory(each))


def is_directory(path: Path) -> bool:
    """Whether it is there and is one."""
    found = status(path)
    return found is not None and stat.S_ISDIR(found.st_mode)


def _identity(path: Found) -> tuple[int, ...]:
    found = status(path)
    if found is None:
        return ()
    if stat.S_ISDIR(found.st_mode):
        return (found.st_dev, found.st_ino)
    return (found.st_dev, found.st_ino, found.st_size, found.st_ctime_ns)


def status(path: Found) -> os.stat_result | None:
    """What stat(2) says, if it says something."""
    try:
        return path.stat()
    except (OSError, ValueError):  # a name that cannot be
        return None
