"""The table of docs/performance.md, generated from the results of `make bench`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import click

from tests.bench.findings import BASELINE, GATE_ALONE, OURS
from tests.bench.report import RESULTS, Measured, Record, read

CALL, CONNECT = "FetchX509SVID, open connection", "connect + FetchX509SVID"
JWT, NEW_JWT, VALIDATE = (
    "FetchJWTSVID, cached",
    "FetchJWTSVID, new audience",
    "ValidateJWTSVID",
)
STORM = "storm of processes, each connects and fetches"
STREAMS, PUSH = "open streams, one a connection", "a change of the bundle, to all open streams"
EDIT, LOAD = (
    "an edit of the entry file among open streams",
    "load of an edited file of so many entries",
)
START = "start with so many entries, until ready"
RARE, COMMON = (
    "match among entries, each with a rare selector",
    "match among entries that share common selectors",
)
RENEWAL = "renewal of SVIDs that are all due, each of a watcher"
FLOOD, FLOODING_PROCESSES = "one user's processes flood", 4


MILLIONS, HUNDREDS = 1e5, 100


@dataclass(frozen=True, slots=True)
class Row:
    """A row's title, and the key of its finding."""

    label: str
    scenario: str
    measure: str
    size: int = 1


CPU, INSTRUCTIONS = "CPU per call, µs", "instructions per call"

ROWS = (
    Row("FetchX509SVID on an open connection, CPU", CALL, CPU),
    Row("… 100 at once, CPU of each", CALL, CPU, 100),
    Row("… instructions", CALL, INSTRUCTIONS),
    Row("… as the client sees it, median", CALL, "p50, ms"),
    Row("connect + FetchX509SVID, CPU", CONNECT, CPU),
    Row("… 100 at once, CPU of each", CONNECT, CPU, 100),
    Row("… instructions", CONNECT, INSTRUCTIONS),
    Row("FetchJWTSVID, kept, CPU", JWT, CPU),
    Row("FetchJWTSVID, for a new audience, CPU", NEW_JWT, CPU),
    Row("ValidateJWTSVID, CPU", VALIDATE, CPU),
    Row(
        "1,000 processes connect at once, until the last has its SVID",
        STORM,
        "until the last has its SVID, ms",
        1000,
    ),
    Row("… CPU of each", STORM, "CPU per process, µs", 1000),
    Row("4,000 open streams, memory of each", STREAMS, "memory per stream, KiB", 4000),
    Row("… descriptors of each", STREAMS, "descriptors per stream", 4000),
    Row("… CPU while nothing happens", STREAMS, "CPU idle, % (one value, of a minute)", 4000),
    Row("… a change of the bundle, until the last has it", PUSH, "to the last, ms", 4000),
    Row(
        "an edit that concerns one of 1,000 streams, to its message",
        EDIT,
        "that concerns one: to its message, ms",
        1000,
    ),
    Row(
        "an edit that concerns all 1,000, to the last message",
        EDIT,
        "that concerns all: to the last message, ms",
        1000,
    ),
    Row(
        "100,000 entries, from the edit until they are in force", LOAD, "until in force, s", 100_000
    ),
    Row("start with 1,000 entries, until ready", START, "until ready, s", 1000),
    Row("start with 100,000 entries, until ready", START, "until ready, s", 100_000),
    Row(
        "match among 100,000 entries, each with a rare selector",
        RARE,
        "match of one caller, µs",
        100_000,
    ),
    Row("match among 100,000, all with common ones", COMMON, "match of one caller, µs", 100_000),
    Row("10,000 SVIDs that are due in one moment", RENEWAL, "all, s", 10_000),
)


@click.command()
def main() -> None:
    """Print the table of docs/performance.md."""
    results = read(RESULTS)
    findings = {each.key: each for each in results.findings}
    click.echo(
        "| | vouchd | bare server | ratio | gate alone | budget |\n|---|---|---|---|---|---|"
    )
    for row in ROWS:
        if finding := findings.get((row.scenario, row.measure, row.size)):
            click.echo(_line(row, finding))
    click.echo(_floods(results.findings))
    commits = ", ".join(sorted({each.commit for each in findings.values()}))
    click.echo(f"\n{results.machine}\nmeasured at {commits}", err=True)


def _line(row: Row, finding: Record) -> str:
    unit = row.measure.partition(" (")[0].rpartition(", ")[2] if ", " in row.measure else ""
    cells = [row.label]
    cells += [_value(finding.servers.get(name), unit) for name in (OURS, BASELINE)]
    cells += [_ratio(finding.servers.get(name)) for name in (OURS, GATE_ALONE)]
    return f"| {' | '.join([*cells, _budget(finding, unit)])} |"


def _value(server: Measured | None, unit: str) -> str:
    if server is None or server.spread is None:
        return ""
    return f"{_short(server.spread.median)} {unit}".rstrip()


def _ratio(server: Measured | None) -> str:
    if server is None or server.ratio_to_baseline is None:
        return ""
    ratio = server.ratio_to_baseline
    median, least, most = map(_short, (ratio.median, ratio.least, ratio.most))
    return median if least == most else f"{median} ({least} to {most})"


def _budget(finding: Record, unit: str) -> str:
    if finding.budget is None:
        return ""
    is_ratio = finding.budget.endswith(" x")
    text = finding.budget.removesuffix(" x") if is_ratio else f"{finding.budget} {unit}".rstrip()
    return text + {True: "", False: ", **missed**", None: ", not measured"}[finding.within_budget]


def _short(value: float) -> str:
    """Format a number with three significant digits."""
    if value >= MILLIONS:
        return f"{value / 1e6:.2f} million"
    return f"{value:,.0f}" if value >= HUNDREDS else f"{value:.3g}"


def _floods(findings: Iterable[Record]) -> str:
    most = {
        what: max((_median_ratio(each) for each in findings if _is_of_flood(each, what)), default=0)
        for what in ("call", "connect")
    }
    return (
        "| six floods by four processes each: p99 of another user's calls and connects, to quiet"
        f" | | | {_short(most['call'])} and {_short(most['connect'])} at most | | 3 |"
    )


def _is_of_flood(finding: Record, what: str) -> bool:
    is_flood = finding.scenario.startswith(FLOOD) and finding.size == FLOODING_PROCESSES
    return is_flood and finding.measure.startswith(f"{what} ")


def _median_ratio(finding: Record) -> float:
    ratio = finding.servers[OURS].ratio_to_baseline
    return 0.0 if ratio is None else ratio.median


if __name__ == "__main__":
    main()
