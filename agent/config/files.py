"""Read configuration files and entry files from the disk.

A file that cannot be found or read is a `Problem` on line 1 of that file. All functions here block
as long as the file system does; `agent.config.daemon_thread` keeps them off the event loop.
"""

from __future__ import annotations

import os
import stat
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from agent.config.settings import Settings, parse_settings
from agent.config.yaml_document import Source
from agent.errors import ConfigError, Problem

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import PurePath

    from pydantic import BaseModel

# Six times the size of 100,000 entries; a larger file is there by mistake.
MAX_FILE_BYTES = 64 << 20
SUFFIXES = (".yaml", ".yml")


def load_settings(path: Path, options_models: Mapping[str, type[BaseModel]]) -> Settings:
    """Read `agent.yaml`.

    Raises:
        ConfigError: with every mistake in it, or why it cannot be read.
    """
    source = read_file(path)
    return parse_settings(source, path.parent.resolve(), options_models)


def read_entry_files(paths: Iterable[PurePath]) -> list[Source]:
    """Read entry files, and the YAML files of directories in name order.

    Raises:
        ConfigError: with every file that cannot be read.
    """
    sources, problems = read_sources(paths)
    if problems:
        raise ConfigError(problems)
    return sources


def read_sources(paths: Iterable[PurePath]) -> tuple[list[Source], list[Problem]]:
    """Read entry files as `read_entry_files` does; return the files, and what cannot be read."""
    sources: list[Source] = []
    problems: list[Problem] = []
    for path in paths:
        with _collected(problems):
            for file in _files(Path(path)):
                with _collected(problems):
                    sources.append(read_file(file))
    return sources, problems


def read_file(path: Path, *, max_bytes: int = MAX_FILE_BYTES) -> Source:
    """Read one file.

    Raises:
        ConfigError: it cannot be read, is not a regular file, or is larger than `max_bytes`.
    """
    try:
        with open(path, "rb", opener=_open_nonblocking) as file:
            is_regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
            content = file.read(max_bytes + 1) if is_regular else b""
    except OSError as error:
        raise _unreadable(path, error) from None
    if not is_regular:
        raise _problem(path, "is not a regular file")
    if len(content) > max_bytes:
        raise _problem(path, f"is larger than {max_bytes >> 20} MiB")
    return Source(name=str(path), content=content)


def is_entry_file_name(name: str) -> bool:
    """Return whether a file of this name in a directory is read: *.yaml and *.yml, not hidden."""
    return name.endswith(SUFFIXES) and not name.startswith(".")


@contextmanager
def _collected(problems: list[Problem]) -> Iterator[None]:
    """Append the problems of a ConfigError to a list instead of raising it."""
    try:
        yield
    except ConfigError as error:
        problems.extend(error.problems)


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    try:
        inside = sorted(path.iterdir())
    except OSError as error:
        raise _unreadable(path, error) from None
    return [each for each in inside if is_entry_file_name(each.name)]


def _open_nonblocking(path: str, flags: int) -> int:
    # Without O_NONBLOCK, opening a FIFO waits for a writer.
    return os.open(path, flags | os.O_NONBLOCK)


def _unreadable(path: Path, error: OSError) -> ConfigError:
    return _problem(path, f"cannot be read: {error.strerror}")


def _problem(path: Path, reason: str) -> ConfigError:
    return ConfigError([Problem(str(path), 1, 1, f"{path.name} {reason}")])
