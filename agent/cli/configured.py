"""What a configuration file says, with the attestors that are installed here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from agent.files import load_settings
from agent.plugins import known_options

if TYPE_CHECKING:
    from agent.config import Settings


def configured(config: Path) -> Settings:
    """The settings of a configuration file.

    Raises:
        ConfigError: with every mistake in it.
    """
    return load_settings(config, known_options())


def admin_socket_of(config: Path) -> Path:
    """The administration socket that a configuration file names.

    Raises:
        ConfigError: with every mistake in the file.
        UsageError: it names none.
    """
    path = configured(config).admin_socket_path
    if path is None:
        raise click.UsageError(
            f"{config} sets no admin_socket_path: set one, and restart the agent"
        )
    return Path(path)
