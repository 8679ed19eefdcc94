"""Find the directories in which a change may affect the entry files, and the files' present state.

A change may happen beside the files, beside each symbolic link on the way to them, and in the last
existing directory of a path whose end does not exist. Everything here may block as long as a file
system does.
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

_Place: TypeAlias = "Path | os.DirEntry[str]"

# The kernel follows no more (path_resolution(7)).
MAX_LINKS = 40


@dataclass(frozen=True, slots=True)
class View:
    """The state of the entry files at one moment."""

    directories: frozenset[Path]
    """The directories in which a change may affect the files."""
    listed: frozenset[Path]
    """Those of them whose YAML files are all read."""
    names: frozenset[str]
    """Links, their targets, and all directories above: their change may move the files."""
    files: Mapping[str, tuple[int, ...]]
    """Of each file and directory: numbers that differ if its content does; none if it is absent."""

    def concerns(self, directory: Path, name: str) -> bool:
        """Return whether an event of this name may affect the files; no name is the directory."""
        return (
            not name
            or os.path.join(directory, name) in self.names  # noqa: PTH118 - for very many events
            or (is_entry_file_name(name) and directory in self.listed)
        )

    def has_lost(self, before: View) -> bool:
        """Return whether a file of the view before is absent in this one."""
        return any(numbers and not self.files.get(path) for path, numbers in before.files.items())


def look(paths: Iterable[Path]) -> View:
    """Return the present state of these paths. A path that cannot be examined counts as absent."""
    directories: set[Path] = set()
    listed: set[Path] = set()
    names: set[Path] = set()
    files: dict[str, tuple[int, ...]] = {}
    for path in paths:
        found = _entry_files(path)
        for way in (path, *(Path(each) for each in found if each.is_symlink())):
            *links, end = _resolved(way)
            if _is_directory(end):
                listed.add(end)
            directories |= {link.parent for link in links} | {_nearest_directory(end)}
            names |= {above for place in (*links, end) for above in (place, *place.parents)}
        files |= {each.path: _numbers(each) for each in found}
        files[str(path)] = _numbers(path)
    return View(frozenset(directories), frozenset(listed), frozenset(map(str, names)), files)


def _entry_files(path: Path) -> list[os.DirEntry[str]]:
    """Return the files that are read if this is a directory."""
    try:
        with os.scandir(path) as found:
            return [each for each in found if is_entry_file_name(each.name)]
    except OSError:
        return []


def _resolved(path: Path) -> Iterator[Path]:
    """Yield where each symbolic link on the way lies, then the end of the way, even if absent."""
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
    return next(each for each in (path, *path.parents) if _is_directory(each))


def _is_directory(path: Path) -> bool:
    found = _stat(path)
    return found is not None and stat.S_ISDIR(found.st_mode)


def _numbers(path: _Place) -> tuple[int, ...]:
    found = _stat(path)
    if found is None:
        return ()
    if stat.S_ISDIR(found.st_mode):
        return (found.st_dev, found.st_ino)
    return (found.st_dev, found.st_ino, found.st_size, found.st_ctime_ns)


def _stat(path: _Place) -> os.stat_result | None:
    try:
        return path.stat()
    except (OSError, ValueError):  # ValueError: the name of a link's target has a NUL byte
        return None
