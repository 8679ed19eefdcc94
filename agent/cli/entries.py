"""`vouchd entries`: what the files say, and what a set of selectors would match. Needs no agent."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from agent.cli.options import config_option, output_option
from agent.cli.output import show
from agent.cli.serve import configured
from agent.clock import SystemClock
from agent.daemon import load_configured_entries
from agent.values import format_duration
from attestors.api import Selector

if TYPE_CHECKING:
    from datetime import datetime, timedelta
    from pathlib import Path

    from agent.cli.output import Data, Format
    from agent.entries import Entry

# Whoever asks why nothing matches wants the likeliest entries, not all of them.
_NEAREST = 3

_CLOCK = SystemClock()


@click.group()
def entries() -> None:
    """Look at the registration entries."""


@entries.command("list")
@config_option
@output_option
def list_entries(config: Path, output: Format) -> None:
    """List the entries in the order in which they count."""
    loaded = load_configured_entries(configured(config), _CLOCK).entries
    show({"entries": [_entry_data(entry) for entry in loaded.entries]}, output, _CLOCK.now())


@entries.command("match")
@config_option
@output_option
@click.argument("selectors", nargs=-1, required=True, metavar="SELECTOR...")
@click.pass_context
def match_entries(
    ctx: click.Context, config: Path, output: Format, selectors: tuple[str, ...]
) -> None:
    """Which entries a process with these selectors would match. Exit code 1 if none.

    For example: vouchd entries match -c agent.yaml unix:uid:1000 unix:gid:1000
    """
    try:
        facts = frozenset(map(Selector.parse, selectors))
    except ValueError as error:
        raise click.UsageError(f"{error}, such as unix:uid:1000", ctx) from None
    now = _CLOCK.now()
    loaded = load_configured_entries(configured(config), _CLOCK).entries
    matched = loaded.match(facts, now)
    others = [entry for entry in loaded.entries if entry not in matched]
    answer: dict[str, Data] = {
        "matched": [_entry_data(entry) for entry in matched],
        "nearest": [_why_not(entry, facts, now) for entry in _nearest(others, facts)],
    }
    show(answer, output, now)
    if not matched:
        click.echo("vouchd: no entry matches these selectors; see what is missing above", err=True)
        ctx.exit(1)


def _nearest(others: list[Entry], facts: frozenset[Selector]) -> list[Entry]:
    """Those of which something holds, the fewest missing first; else the first."""
    related = [entry for entry in others if entry.selectors & facts]
    return sorted(related or others, key=lambda entry: len(entry.selectors - facts))[:_NEAREST]


def _why_not(entry: Entry, facts: frozenset[Selector], now: datetime) -> dict[str, Data]:
    expired = entry.expires_at is not None and entry.expires_at <= now
    return {
        "id": entry.id,
        "spiffe_id": str(entry.spiffe_id),
        "missing_selectors": sorted(map(str, entry.selectors - facts)),
        "expired_at": entry.expires_at if expired else None,
        "origin": entry.origin,
    }


def _entry_data(entry: Entry) -> dict[str, Data]:
    return {
        "id": entry.id,
        "spiffe_id": str(entry.spiffe_id),
        "selectors": sorted(map(str, entry.selectors)),
        "x509_svid_ttl": _ttl(entry.x509_svid_ttl),
        "jwt_svid_ttl": _ttl(entry.jwt_svid_ttl),
        "dns_names": entry.dns_names,
        "hint": entry.hint,
        "federates_with": [domain.name for domain in entry.federates_with],
        "expires_at": entry.expires_at,
        "origin": entry.origin,
    }


def _ttl(ttl: timedelta | None) -> str | None:
    return None if ttl is None else format_duration(ttl)
