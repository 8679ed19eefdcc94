"""Operators' files on the disk: finds and reads them, and hands their bytes to the core.

The only module that touches configuration files. What is wrong with finding or reading one is a
problem like any other, on line 1 of the file it names.
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

# Six times what 100,000 entries need; a larger file is something else by mistake.
MAX_FILE_BYTES = 64 << 20
SUFFIXES = frozenset({".yaml", ".yml"})


def load_settings(path: Path, options_models: Mapping[str, type[BaseModel]]) -> Settings:
    """Read the configuration file.

    Raises:
        ConfigError: with every mistake in it, or why it cannot be read.
    """
    source = _read(path)
    return parse_settings(source, path.parent.resolve(), options_models)


def read_entry_files(paths: Iterable[PurePath]) -> list[Source]:
    """The content of entry files, and of the YAML files of directories by name.

    Raises:
        ConfigError: with every file that cannot be read.
    """
    sources, problems = _read_all(paths)
    if problems:
        raise ConfigError(problems)
    return sources


def read_file(path: Path) -> Source:
    """The content of one file that an operator names.

    Raises:
        ConfigError: it cannot be read.
    """
    return _read(path)


def _read_all(paths: Iterable[PurePath]) -> tuple[list[Source], list[Problem]]:
    sources: list[Source] = []
    problems: list[Problem] = []
    for path in paths:
        with _gathering(problems):
            for file in _files(Path(path)):
                with _gathering(problems):
                    sources.append(_read(file))
    return sources, problems


@contextmanager
def _gathering(problems: list[Problem]) -> Iterator[None]:
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
    return [each for each in inside if each.suffix in SUFFIXES and not each.name.startswith(".")]


def _read(path: Path) -> Source:
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            is_regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
            content = file.read(MAX_FILE_BYTES + 1) if is_regular else b""
    except OSError as error:
        raise _unreadable(path, error) from None
    if not is_regular:
        raise _problem(path, "is not a regular file")
    if len(content) > MAX_FILE_BYTES:
        raise _problem(path, f"is larger than {MAX_FILE_BYTES >> 20} MiB")
    return Source(name=str(path), content=content)


def _open_at_once(path: str, flags: int) -> int:
    # A FIFO in the place of a file must not hang the start.
    return os.open(path, flags | os.O_NONBLOCK)


def _unreadable(path: Path, error: OSError) -> ConfigError:
    return _problem(path, f"cannot be read: {error.strerror}")


def _problem(path: Path, reason: str) -> ConfigError:
    return ConfigError([Problem(str(path), 1, 1, f"{path.name} {reason}")])
