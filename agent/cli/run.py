"""`vouchd run` and `vouchd check`: the agent, and a check of its files without it."""

from __future__ import annotations

import os
from contextlib import closing
from typing import TYPE_CHECKING

import click

from agent.cli.config_file import load
from agent.cli.options import config_option, output_option
from agent.cli.output import Format, show
from agent.clock import SystemClock
from agent.entries.load import load_configured_entries
from agent.errors import ConfigError, Problem, Severity
from agent.service import daemon
from agent.service.sd_notify import ServiceManager
from agent.service.wiring import Host
from agent.telemetry.log import Line, adjust_log, configure_log

if TYPE_CHECKING:
    from pathlib import Path


@click.command(epilog="Example: vouchd run -c /etc/vouchd/agent.yaml")
@config_option
def run(config: Path) -> None:
    """Run the agent until SIGTERM or Ctrl-C.

    The agent logs to stderr. The line "vouchd ready on unix://..." names the socket once the agent
    accepts calls. SIGHUP reloads the configuration and the entries.
    """
    with closing(ServiceManager.take(os.environ)) as manager, manager.told_of_failure():
        settings = load(config)
        log, writer = configure_log(settings.log.level, settings.log.format)
        host = Host(
            log=log,
            audit=writer.audit,
            manager=manager,
            ready=lambda address: writer.write(Line(f"vouchd ready on {address}")),
            reread=lambda: load(config),
            relog=lambda changed: adjust_log(changed.log.level, changed.log.format, writer),
        )
        try:
            daemon.run(settings, host)
        finally:
            writer.close()


@click.command(epilog="Example: vouchd check -c /etc/vouchd/agent.yaml")
@config_option
@output_option
@click.pass_context
def check(ctx: click.Context, config: Path, output: Format) -> None:
    """Check the configuration and the registration entries.

    Prints one problem per line, as FILE:LINE:COLUMN: MESSAGE. The exit code is 2 if a problem is an
    error, and 0 if there are only warnings.
    """
    clock = SystemClock()
    try:
        loaded = load_configured_entries(load(config), clock)
    except ConfigError as error:
        problems, summary = error.problems, ""
    else:
        problems = loaded.warnings
        summary = _summary([entry.origin for entry in loaded.entries.entries])
    if output is Format.JSON:
        show([_problem_data(problem) for problem in problems], output, clock.now())
    else:
        for line in [*map(str, problems), *filter(None, [summary])]:
            click.echo(line)
    if any(problem.severity is Severity.ERROR for problem in problems):
        ctx.exit(2)


def _summary(origins: list[str]) -> str:
    files = {origin.rpartition(":")[0] for origin in origins}
    entries = "1 entry" if len(origins) == 1 else f"{len(origins)} entries"
    verb = "is" if len(origins) == 1 else "are"
    return f"{entries} in {len(files)} file{'' if len(files) == 1 else 's'} {verb} valid"


def _problem_data(problem: Problem) -> dict[str, str | int]:
    return {
        "file": problem.file,
        "line": problem.line,
        "column": problem.column,
        "severity": str(problem.severity),
        "message": problem.message,
    }
