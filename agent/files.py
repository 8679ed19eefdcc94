"""Operators' files on the disk: finds and reads them, and hands their bytes to the core.

The only module that touches configuration files. What is wrong with finding or reading one is a
problem like any other, on line 1 of the file it names.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from agent.config import Settings, parse_settings
from agent.entries import LoadedEntries, parse_entries
from agent.errors import ConfigError, Problem
from agent.located import Source

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from datetime import datetime, timedelta
    from pathlib import PurePath

    from pydantic import BaseModel

    from agent.spiffe import TrustDomain

# Six times what 100,000 entries need; a larger file is something else by mistake.
MAX_FILE_BYTES = 64 << 20
SUFFIXES = frozenset({".yaml", ".yml"})


def load_settings(path: Path, options_models: Mapping[str, type[BaseModel]]) -> Settings:
    """Read the configuration file.

    Raises:
        ConfigError: with every mistake in it, or why it cannot be read.
    """
    source = _read(path)
    return parse_settings(source, path.resolve().parent, options_models)


def load_entries(
    paths: Iterable[PurePath],
    trust_domain: TrustDomain,
    selector_types: frozenset[str],
    *,
    max_svid_ttl: timedelta | None = None,
    now: datetime | None = None,
) -> LoadedEntries:
    """Read registration entries from files, and from the YAML files of directories by name.

    Raises:
        ConfigError: with every mistake in all files, and every file that cannot be read.
    """
    sources: list[Source] = []
    problems: list[Problem] = []
    for path in paths:
        try:
            sources.extend(map(_read, _files(Path(path))))
        except ConfigError as error:
            problems.extend(error.problems)
    try:
        loaded = parse_entries(
            sources, trust_domain, selector_types, max_svid_ttl=max_svid_ttl, now=now
        )
    except ConfigError as error:
        raise ConfigError([*problems, *error.problems]) from None
    if problems:
        raise ConfigError(problems)
    return loaded


def _files(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        yield path
        return
    try:
        inside = sorted(path.iterdir())
    except OSError as error:
        raise _unreadable(path, error) from None
    for each in inside:
        if each.suffix in SUFFIXES and not each.name.startswith("."):
            yield each


def _read(path: Path) -> Source:
    # Not blocking: a FIFO in the place of a file must not hang the start.
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise _unreadable(path, error) from None
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise _problem(path, "is not a regular file")
        content = file.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        raise _problem(path, f"is larger than {MAX_FILE_BYTES >> 20} MiB")
    return Source(name=str(path), content=content)


def _unreadable(path: Path, error: OSError) -> ConfigError:
    return _problem(path, f"cannot be read: {error.strerror or error}")


def _problem(path: Path, reason: str) -> ConfigError:
    return ConfigError([Problem(str(path), 1, 1, f"{path.name} {reason}")])
