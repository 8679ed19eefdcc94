"""Load registration entries from the configured files and directories."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.config.files import read_sources
from agent.entries.schema import LoadedEntries, parse_entries
from agent.errors import ConfigError
from agent.gc_pause import gc_paused

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime, timedelta
    from pathlib import PurePath

    from agent.clock import Clock
    from agent.config.settings import Settings
    from agent.config.yaml_document import Source
    from agent.spiffe.ids import TrustDomain


def load_configured_entries(settings: Settings, clock: Clock) -> LoadedEntries:
    """Load the registration entries that the settings name. Reads files, so it may block.

    Raises:
        ConfigError: with every mistake in the files.
    """
    return load_entries(
        settings.entries,
        settings.trust_domain,
        frozenset(settings.attestors),
        max_svid_ttl=settings.authority.max_svid_ttl,
        now=clock.now(),
    )


def parse_by_settings(sources: Sequence[Source], settings: Settings, clock: Clock) -> LoadedEntries:
    """Parse registration entries from elsewhere by the rules of these settings.

    Raises:
        ConfigError: with every mistake in the sources.
    """
    return parse_entries(
        sources,
        settings.trust_domain,
        frozenset(settings.attestors),
        max_svid_ttl=settings.authority.max_svid_ttl,
        now=clock.now(),
    )


def load_entries(
    paths: Iterable[PurePath],
    trust_domain: TrustDomain,
    selector_types: frozenset[str],
    *,
    max_svid_ttl: timedelta | None = None,
    now: datetime | None = None,
) -> LoadedEntries:
    """Load registration entries from files, and from the YAML files of directories in name order.

    Raises:
        ConfigError: with every mistake in all files, and every file that cannot be read.
    """
    sources, problems = read_sources(paths)
    try:
        with gc_paused():
            loaded = parse_entries(
                sources, trust_domain, selector_types, max_svid_ttl=max_svid_ttl, now=now
            )
    except ConfigError as error:
        raise ConfigError([*problems, *error.problems]) from None
    if problems:
        raise ConfigError(problems)
    return loaded
