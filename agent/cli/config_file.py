"""What a configuration file says, with the attestors that are installed here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from agent.attestation.plugins import known_options
from agent.config.files import load_settings

if TYPE_CHECKING:
    from agent.config.settings import Settings


def load(config: Path) -> Settings:
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
    path = load(config).admin_socket_path
    if path is None:
        raise click.UsageError(
            f"{config} sets no admin_socket_path: set one, and restart the agent"
        )
    return Path(path)
