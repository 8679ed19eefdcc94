"""`make bench`: what the agent costs, against a bare grpc.aio server in the same run.

CPU time of the server's process, and latencies as a client sees them; the clients run elsewhere and
are not measured. Servers take turns, round by round: only ratios within one run mean something.
See README.md beside this file.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import click

from tests.bench import (
    attesting,
    calls,
    checks,
    edits,
    floods,
    holding,
    instructions,
    matching,
    metering,
    reference,
    renewal,
    report,
    starting,
    storm,
)
from tests.bench.findings import OURS, Finding
from tests.bench.servers import OTHER, Server, all_servers

RESULTS = Path("bench-results.json")


def _calls(other: Server | None) -> Iterator[list[Finding]]:
    with all_servers(other, gate_alone=True) as servers:
        for kind in calls.KINDS:
            yield [
                finding
                for at_once in calls.AT_ONCE
                for finding in calls.measure(kind, servers, at_once)
            ]


def _storm(other: Server | None) -> Iterator[list[Finding]]:
    with all_servers(other) as servers:
        yield storm.measure(servers)


def _checks(_other: Server | None) -> Iterator[list[Finding]]:
    with all_servers() as servers:
        cpu = calls.measure(calls.FETCH, servers, 1)[0].spread(OURS)
    assert cpu is not None
    yield in_own_process(checks.measure, cpu.median)
    yield in_own_process(metering.measure, cpu.median)


def _floods(_other: Server | None) -> Iterator[list[Finding]]:
    if os.geteuid() == 0:
        yield floods.measure()
    else:
        click.echo("floods: left out, since only root can be two users", err=True)


def _instructions(_other: Server | None) -> Iterator[list[Finding]]:
    if missing := instructions.missing():
        lacking = f"{' and '.join(missing)} not found (Debian: valgrind)"
        click.echo(f"instructions: left out, {lacking}", err=True)
    else:
        yield instructions.measure()


# Those of the first part are what clients do, whoever serves.
CLIENT_SIDE: dict[str, Callable[[Server | None], Iterator[list[Finding]]]] = {
    "calls": _calls,
    "storm": _storm,
    "streams": lambda other: iter([holding.measure(other)]),
}
INSIDE: dict[str, Callable[[Server | None], Iterator[list[Finding]]]] = {
    "instructions": _instructions,
    "edits": lambda _: iter([edits.measure()]),
    "start": lambda _: iter([starting.measure()]),
    "floods": _floods,
    "renewal": lambda _: iter([in_own_process(renewal.measure)]),
    "match": lambda _: iter([in_own_process(matching.measure)]),
    "attestors": lambda _: iter([in_own_process(attesting.measure)]),
    "checks": _checks,
}
SCENARIOS = {**CLIENT_SIDE, **INSIDE}


def in_own_process(measure: Callable[..., list[Finding]], *arguments: float) -> list[Finding]:
    """What it finds in a process in which nothing else was done."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measure, *arguments).result()


@click.command()
@click.argument("scenarios", nargs=-1, type=click.Choice(list(SCENARIOS)))
@click.option("--agent-socket", help="Another Workload API server, to be measured beside ours.")
@click.option("--pid", type=int, help="Its process, which must know whoever runs this.")
@click.option("--results", type=click.Path(path_type=Path), default=RESULTS, show_default=True)
@click.option(
    "--write-reference", is_flag=True, help="Only record what the regression test compares with."
)
def main(
    scenarios: tuple[str, ...],
    agent_socket: str | None,
    pid: int | None,
    results: Path,
    *,
    write_reference: bool,
) -> None:
    """Measure SCENARIOS; without any, all (with --agent-socket, all that clients do)."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # it holds thousands of connections
    # The thread that reads the agent's log, with a line for each call, must not hold up a client.
    sys.setswitchinterval(1e-4)
    if write_reference:
        if missing := instructions.missing():
            raise click.ClickException(f"{' and '.join(missing)} not found (Debian: valgrind)")
        reference.write(reference.measure())
        return
    if (agent_socket is None) != (pid is None):
        raise click.UsageError("--agent-socket and --pid go together")
    other = None
    if agent_socket is not None and pid is not None:
        other = Server(name=OTHER, socket=agent_socket, pid=pid)
    findings: list[Finding] = []
    for name in scenarios or (SCENARIOS if other is None else CLIENT_SIDE):
        findings += _measured(name, other)
        report.write(findings, results)  # whoever has seen enough may interrupt it
    for finding in report.missed(findings):
        click.echo(f"over budget: {finding.scenario}: {finding.measure} at {finding.size:,}")


def _measured(name: str, other: Server | None) -> Iterator[Finding]:
    """What is found, after it was shown."""
    began = time.perf_counter()
    for found in SCENARIOS[name](other):
        report.show(found)
        yield from found
    click.echo(f"{name}: {time.perf_counter() - began:.0f} s", err=True)


if __name__ == "__main__":
    main()
