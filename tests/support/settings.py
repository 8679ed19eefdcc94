"""Settings for tests that need no agent.yaml."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

from agent.config.settings import Settings


def settings(**fields: Any) -> Settings:
    """Make settings of example.org; `fields` are those of agent.yaml."""
    written = {"trust_domain": "example.org", **fields}
    return Settings.model_validate(written, context=PurePath("/nonexistent"))
