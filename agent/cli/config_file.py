"""Read the agent's configuration, with the options of the installed attestors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from agent.attestation.plugins import known_options
from agent.config.files import load_settings

if TYPE_CHECKING:
    from agent.config.settings import Settings


def load(config: Path) -> Settings:
    """Return the settings of a configuration file.

    Raises:
        ConfigError: with every problem in the file.
    """
    return load_settings(config, known_options())


def admin_socket_of(config: Path) -> Path:
    """Return the path of the admin socket that a configuration file sets.

    Raises:
        ConfigError: with every problem in the file.
        UsageError: the file sets none.
    """
    path = load(config).admin_socket_path
    if path is None:
        raise click.UsageError(f"{config} sets no admin_socket_path: set it, and restart the agent")
    return Path(path)
