"""`vouchd entries`: list, match, compare and import registration entries."""

from __future__ import annotations

import asyncio
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from agent.attestation.attestor import WorkloadAttestor
from agent.attestation.plugins import make_attestors
from agent.attestation.result import Attested
from agent.cli.config_file import admin_socket_of, load
from agent.cli.options import Pid, config_option, output_option, timeout_option
from agent.cli.output import show
from agent.client.admin import AdminClient
from agent.clock import SystemClock
from agent.config.files import read_entry_files, read_file
from agent.config.values import format_duration
from agent.entries.explain import explain
from agent.entries.load import load_configured_entries
from agent.entries.spire_import import import_entries
from agent.kernel.inspect import process_by_pid
from agent.telemetry.log import configure_log
from attestors.api import Selector

if TYPE_CHECKING:
    from datetime import timedelta

    from agent.cli.output import Data, Format
    from agent.config.settings import Settings
    from agent.entries.entry import Entry

_CLOCK = SystemClock()


@click.group()
def entries() -> None:
    """List, match, compare and import registration entries."""


@entries.command("list", epilog="Example: vouchd entries list -c /etc/vouchd/agent.yaml")
@config_option
@output_option
def list_entries(config: Path, output: Format) -> None:
    """List the entries of the files, in the order in which a process gets them."""
    loaded = load_configured_entries(load(config), _CLOCK).entries
    show({"entries": [_entry_data(entry) for entry in loaded.entries]}, output, _CLOCK.now())


@entries.command(
    "match", epilog="Example: vouchd entries match -c /etc/vouchd/agent.yaml unix:uid:1000"
)
@config_option
@output_option
@click.option("--pid", type=Pid(), help="Attest this process here, and match its selectors.")
@click.argument("selectors", nargs=-1, metavar="[SELECTOR...]")
@click.pass_context
def match_entries(
    ctx: click.Context, config: Path, output: Format, pid: int | None, selectors: tuple[str, ...]
) -> None:
    """Show which entries match the SELECTORs of a process.

    With --pid, the attestors that the configuration enables attest a process instead. The command
    needs no agent: it also answers for files that are not deployed yet. The exit code is 1 if no
    entry matches.
    """
    if bool(selectors) == (pid is not None):
        raise click.UsageError("give either selectors, such as unix:uid:1000, or --pid PID", ctx)
    settings = load(config)
    loaded = load_configured_entries(settings, _CLOCK).entries
    found = _parse(ctx, selectors) if pid is None else _attest(settings, pid)
    now = _CLOCK.now()
    verdict = explain(loaded, found.selectors, now)
    answer = {**asdict(verdict), "notes": found.notes, "failures": dict(found.failures)}
    show(answer, output, now)
    if not verdict.matched:
        click.echo("vouchd: no entry matches these selectors; the missing ones are above", err=True)
        ctx.exit(1)


@entries.command("diff", epilog="Example: vouchd entries diff -c new/agent.yaml")
@click.option(
    "-c",
    "--config",
    required=True,
    metavar="NEW",
    type=click.Path(path_type=Path),
    help="Configuration with the new entry files.",
)
@click.option(
    "--admin-socket",
    metavar="PATH",
    type=click.Path(path_type=Path),
    help="Admin socket of the agent [default: the one that NEW sets].",
)
@timeout_option
@output_option
def diff_entries(config: Path, admin_socket: Path | None, timeout: float, output: Format) -> None:
    """Show which connected processes would gain or lose identities with the entries of NEW."""
    settings = load(config)
    load_configured_entries(settings, _CLOCK)  # reports problems with the paths of this host
    sources = read_entry_files(settings.entries)
    with AdminClient(admin_socket or admin_socket_of(config), timeout) as client:
        files = ((source.name, source.content) for source in sources)
        show(client.diff_entries(files), output, _CLOCK.now())


@entries.command(
    "import", epilog="Example: vouchd entries import -c /etc/vouchd/agent.yaml entries.json"
)
@config_option
@click.argument("file", type=click.Path(path_type=Path))
def import_foreign_entries(config: Path, file: Path) -> None:
    """Convert registration entries of SPIRE to entries of this agent, on stdout.

    FILE is the output of `spire-server entry show -output json`, or ClusterStaticEntry YAML. Each
    part without a counterpart is reported on stderr.
    """
    settings = load(config)
    imported = import_entries(read_file(file), settings.trust_domain, frozenset(settings.attestors))
    click.echo(imported.text, nl=False)
    for sentence in imported.dropped:
        click.echo(f"vouchd: {sentence}", err=True)


def _parse(ctx: click.Context, selectors: tuple[str, ...]) -> Attested:
    try:
        return Attested(selectors=frozenset(map(Selector.parse, selectors)))
    except ValueError as error:
        raise click.UsageError(f"{error}, such as unix:uid:1000", ctx) from None


def _attest(settings: Settings, pid: int) -> Attested:
    """Attest a process with the configured attestors, in this process."""

    async def attest() -> Attested:
        log, writer = configure_log(settings.log.level, settings.log.format)
        attestor = WorkloadAttestor(await make_attestors(settings.attestors, log), log)
        try:
            with closing(process_by_pid(pid)) as caller:
                async with attestor.attest(caller) as attestation:
                    return attestation
        finally:
            await attestor.close()
            writer.close()

    return asyncio.run(attest())


def _entry_data(entry: Entry) -> dict[str, Data]:
    return {
        "entry_id": entry.id,
        "spiffe_id": str(entry.spiffe_id),
        "selectors": sorted(map(str, entry.selectors)),
        "x509_svid_ttl": _ttl(entry.x509_svid_ttl),
        "jwt_svid_ttl": _ttl(entry.jwt_svid_ttl),
        "dns_names": entry.dns_names,
        "hint": entry.hint,
        "federates_with": [domain.name for domain in entry.federates_with],
        "expires_at": entry.expires_at,
        "share": str(entry.share),
        "origin": entry.origin,
    }


def _ttl(ttl: timedelta | None) -> str | None:
    return None if ttl is None else format_duration(ttl)
