"""`make bench`: the agent's costs, compared with a bare grpc.aio server in the same run.

CPU time of the server's process, and latencies as a client sees them; the clients run elsewhere and
are not measured. Servers take turns, round by round: only ratios within one run mean something.
See README.md beside this file.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import active_children, get_context
from pathlib import Path

import click
from click.core import ParameterSource

from agent.service.process import DESCRIPTORS_PER_CONNECTION, OWN_DESCRIPTORS
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
from tests.bench.findings import OURS, Finding, RefusedError
from tests.bench.servers import Server, all_servers, other_server, still

# The greatest number of concurrent connections of scenarios with many.
CONNECTIONS = {
    "storm": max(storm.SIZES),
    "edits": max(edits.STREAMS),
    "streams": max(holding.SIZES),
}
_MOMENT_SECONDS = 0.01
_forking: list[bool] = []


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
        click.echo("floods: skipped, needs root for two users", err=True)


def _instructions(_other: Server | None) -> Iterator[list[Finding]]:
    if missing := instructions.missing():
        lacking = f"{' and '.join(missing)} not found (Debian: valgrind)"
        click.echo(f"instructions: skipped, {lacking}", err=True)
    else:
        yield instructions.measure()


# CLIENT_SIDE works with any Workload API server, INSIDE with vouchd only.
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
    """Run `measure` in a new process and return its findings."""
    context = get_context("spawn")
    with ProcessPoolExecutor(1, context, initializer=_end_by_sigterm) as pool:
        with _ctrl_c_blocked():  # the child inherits the mask; this process ends the child
            found = pool.submit(measure, *arguments)
        try:
            return found.result()
        except BaseException:
            for child in active_children():
                child.terminate()
            raise


@contextmanager
def _ctrl_c_blocked() -> Iterator[None]:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _end_by_sigterm() -> None:
    signal.signal(signal.SIGTERM, _end_in_silence)


def _end_in_silence(number: int, frame: object) -> None:
    """End without asyncio's warnings about cancelled tasks."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    _end(number, frame)


def _end_by_signals() -> None:
    """Make SIGTERM and Ctrl-C end the benchmark's servers and remove its folders."""
    # The hooks are C functions: a Python function could raise inside a hook, which is swallowed.
    os.register_at_fork(
        before=partial(_forking.append, True),
        after_in_parent=_forking.clear,
        after_in_child=_forking.clear,
    )
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _end)


def _end(number: int, _frame: object) -> None:
    if _forking:  # the hooks of a fork swallow exceptions: repeat the signal after the fork
        signal.signal(signal.SIGALRM, lambda *_: _end(number, None))
        signal.setitimer(signal.ITIMER_REAL, _MOMENT_SECONDS)
    elif not isinstance(sys.exception(), SystemExit):  # a SystemExit is already cleaning up
        raise SystemExit(128 + number)


@click.command()
@click.argument("scenarios", nargs=-1, type=click.Choice(list(SCENARIOS)))
@click.option("--agent-socket", help="Socket of another Workload API server to measure too.")
@click.option(
    "--pid",
    type=click.IntRange(min=1),
    help="PID of the other server, if another process created its socket.",
)
@click.option(
    "--results",
    type=click.Path(path_type=Path, dir_okay=False),
    default=report.RESULTS,
    show_default=True,
    help="Results file; new values replace values of the same scenario, measure and size.",
)
@click.option(
    "--write-reference", is_flag=True, help="Only record the ratios for the regression test."
)
def main(
    scenarios: tuple[str, ...],
    agent_socket: str | None,
    pid: int | None,
    results: Path,
    *,
    write_reference: bool,
) -> None:
    """Measure SCENARIOS; default: all (with --agent-socket: calls, storm and streams)."""
    # Switch threads often: the thread that reads the agent's log must not delay a client.
    sys.setswitchinterval(1e-4)
    chosen = scenarios or tuple(SCENARIOS if agent_socket is None else CLIENT_SIDE)
    _refuse_without_effect(chosen)
    _raise_descriptor_limit(() if write_reference else chosen)
    if write_reference:
        _write_reference()
        return
    report.require_writable(results)
    other = None if agent_socket is None else other_server(agent_socket, pid)
    _report_budgets(_measure_all(chosen, other, results))


def _refuse_without_effect(chosen: Sequence[str]) -> None:
    """Refuse options that have no effect."""
    context = click.get_current_context()
    given = {
        name
        for name, value in context.params.items()
        if value and context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    }
    if "write_reference" in given and len(given) > 1:
        raise click.UsageError("--write-reference goes with no other option and no scenario")
    if "pid" in given and "agent_socket" not in given:
        raise click.UsageError("--pid goes with --agent-socket")
    if "agent_socket" in given and not CLIENT_SIDE.keys() & set(chosen):
        raise click.UsageError(f"--agent-socket is for {', '.join(CLIENT_SIDE)} alone")


def _raise_descriptor_limit(chosen: Iterable[str]) -> None:
    """Raise the descriptor limit for thousands of connections; the agent inherits it."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    for name in chosen:
        needed = CONNECTIONS.get(name, 0) * DESCRIPTORS_PER_CONNECTION + OWN_DESCRIPTORS
        if 0 <= hard < needed:
            raise RefusedError(
                f"{name} needs {needed} open files, and {hard} are allowed: raise ulimit -n"
            )


def _write_reference() -> None:
    if missing := instructions.missing():
        raise RefusedError(f"{' and '.join(missing)} not found (Debian: valgrind)")
    reference.write(reference.measure())


def _measure_all(chosen: Iterable[str], other: Server | None, results: Path) -> list[Finding]:
    findings: list[Finding] = []
    commit = report.commit()  # at the start: the checkout may change during the run
    for name in chosen:
        found = list(_measured(name, other))
        report.write(found, results, commit)  # after each scenario: an interrupted run keeps it
        findings += found
    return findings


def _measured(name: str, other: Server | None) -> Iterator[Finding]:
    """Measure a scenario; print and yield its findings."""
    began = time.perf_counter()
    for found in SCENARIOS[name](other):
        if other is not None:
            _require_moving_clock(other, found)
        report.show(found)
        yield from found
    click.echo(f"{name}: {time.perf_counter() - began:.0f} s", err=True)


def _require_moving_clock(other: Server, found: Iterable[Finding]) -> None:
    for finding in found:
        of_calls = finding.measure in {calls.CPU, storm.CPU}
        if of_calls and any(value <= 0 for value in finding.values.get(other.name, ())):
            raise click.ClickException(still(other))


def _report_budgets(findings: Iterable[Finding]) -> None:
    """Print the missed budgets and the budgets without a measured value."""
    for finding in findings:
        if finding.budget is not None and not finding.within_budget:
            result = "not measured" if finding.within_budget is None else "over budget"
            click.echo(f"{result}: {finding.scenario}: {finding.measure} at {finding.size:,}")


if __name__ == "__main__":
    _end_by_signals()
    main()
