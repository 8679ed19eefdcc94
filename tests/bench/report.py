"""Reports of findings: a table on the terminal, and bench-results.json."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from itertools import groupby
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError
from rich.console import Console
from rich.table import Table

from tests.bench.findings import BASELINE, OURS, Finding, Growth, RefusedError, Spread, growths
from tests.support.agent import REPOSITORY

RESULTS = Path("bench-results.json")
_WIDTH = 170
_HELD = {True: "[green]held[/]", False: "[red]MISSED[/]", None: "[yellow]not measured[/]"}


class _Kept(BaseModel):
    model_config = ConfigDict(frozen=True)


class Measured(_Kept):
    """The values of one server, one for each round."""

    values: list[float]
    spread: Spread | None
    ratio_to_baseline: Spread | None


class Record(_Kept):
    """A finding with the commit of its measurement."""

    scenario: str
    measure: str
    size: int
    servers: dict[str, Measured]
    budget: str | None
    within_budget: bool | None
    commit: str = ""

    @property
    def key(self) -> tuple[str, str, int]:
        """The key by which a newer record replaces this one."""
        return self.scenario, self.measure, self.size


class Grown(_Kept):
    """The growth of a measure."""

    scenario: str
    measure: str
    server: str
    exponent: float
    last_step: float
    worse_than_linear: bool

    @property
    def key(self) -> tuple[str, str, str]:
        """The key by which a newer record replaces this one."""
        return self.scenario, self.measure, self.server


class Machine(_Kept):
    """The machine and the software of the last run."""

    cpu: str
    cores: int | None
    kernel: str
    python: str
    grpcio: str
    commit: str
    load_at_end: float


class Results(_Kept):
    """The content of bench-results.json."""

    machine: Machine
    findings: list[Record]
    growth: list[Grown]


def show(findings: Sequence[Finding]) -> None:
    """Print a table for each scenario."""
    console = Console(width=None if Console().is_terminal else _WIDTH)
    for scenario, group in groupby(findings, key=lambda finding: finding.scenario):
        console.print(_table(scenario, list(group)))


def _table(scenario: str, findings: Sequence[Finding]) -> Table:
    servers = list(dict.fromkeys(name for finding in findings for name in finding.values))
    servers.sort(key=lambda name: (name != OURS, name == BASELINE))
    grows = {each.measure: each for each in growths(findings)}
    table = Table(title=scenario, title_justify="left", title_style="bold")
    table.add_column("measure")
    table.add_column("size", justify="right")
    for server in servers:
        table.add_column(server, justify="right")
    for server in servers:
        if server != BASELINE and BASELINE in servers:
            table.add_column(f"{server} / baseline", justify="right")
    for heading in ("budget", "grows as"):
        table.add_column(heading, justify="right")
    for measure, group in groupby(
        sorted(findings, key=lambda each: each.measure), key=lambda each: each.measure
    ):
        rows = list(group)
        for finding in rows:
            growth = grows.get(measure) if finding is rows[-1] else None
            table.add_row(measure, f"{finding.size:,}", *_cells(finding, servers, growth))
        table.add_section()
    return table


def _cells(finding: Finding, servers: Sequence[str], growth: Growth | None) -> list[str]:
    cells = [_spread(finding.spread(server)) for server in servers]
    if BASELINE in servers:
        cells += [_spread(finding.ratio(each)) for each in servers if each != BASELINE]
    return [*cells, _budget(finding), _growth(growth)]


def _spread(spread: Spread | None) -> str:
    if spread is None:
        return ""
    if spread.least == spread.most:
        return _number(spread.median)
    return f"{_number(spread.median)} ({_number(spread.least)}-{_number(spread.most)})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _budget(finding: Finding) -> str:
    if finding.budget is None:
        return ""
    return f"{finding.budget} {_HELD[finding.within_budget]}"


def _growth(growth: Growth | None) -> str:
    if growth is None:
        return ""
    text = f"n^{growth.exponent:.2f}"
    if not growth.worse_than_linear:
        return text
    return f"[yellow]{text}, last step n^{growth.last_step:.2f}[/]"


def read(path: Path) -> Results:
    """Read a results file.

    Raises:
        RefusedError: the file is missing, or is no results file.
    """
    try:
        return Results.model_validate_json(path.read_bytes())
    except OSError as error:
        raise RefusedError(f"cannot read {path}: {error.strerror}") from None
    except ValidationError:
        raise RefusedError(
            f"{path} is no results file of the benchmark: remove it, or choose another path"
        ) from None


def require_writable(path: Path) -> None:
    """Check before a run that `write` can replace the file.

    Raises:
        RefusedError: the path is no regular file, no results file, or not writable.
    """
    if path.exists() and not path.is_file():
        raise RefusedError(f"{path} is no regular file: choose another path for the results")
    _known(path)
    try:
        with _beside(path) as new:
            new.touch()
    except OSError as error:
        raise RefusedError(f"cannot write {path}: {error.strerror}") from None


def write(findings: Sequence[Finding], path: Path, commit: str) -> None:
    """Write findings and this machine to the file; findings with other keys stay."""
    known = _known(path)
    records = [*(known.findings if known else ()), *(_record(each, commit) for each in findings)]
    grown = [*(known.growth if known else ()), *map(_grown, growths(findings))]
    results = Results(
        machine=_machine(commit),
        findings=list({each.key: each for each in records}.values()),
        growth=list({each.key: each for each in grown}.values()),
    )
    with _beside(path) as new:
        new.write_text(results.model_dump_json(indent=2) + "\n")
        new.replace(path)


def commit() -> str:
    """Return the checkout's commit by `git describe`; an empty string without Git."""
    command = ["git", "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip()


def _known(path: Path) -> Results | None:
    """Read the file and give each finding a commit; None without a file."""
    if not path.exists():
        return None
    results = read(path)
    findings = [
        each if each.commit else each.model_copy(update={"commit": results.machine.commit})
        for each in results.findings
    ]
    return results.model_copy(update={"findings": findings})


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """Yield the path of a temporary file in the same folder; remove it after the block."""
    new = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield new
    finally:
        new.unlink(missing_ok=True)


def _record(finding: Finding, commit: str) -> Record:
    return Record(
        scenario=finding.scenario,
        measure=finding.measure,
        size=finding.size,
        servers={
            server: Measured(
                values=[float(f"{value:.6g}") for value in values],
                spread=_rounded(finding.spread(server)),
                ratio_to_baseline=_rounded(finding.ratio(server)),
            )
            for server, values in finding.values.items()
        },
        budget=None if finding.budget is None else str(finding.budget),
        within_budget=finding.within_budget,
        commit=commit,
    )


def _rounded(spread: Spread | None) -> Spread | None:
    if spread is None:
        return None
    return Spread(**{name: float(f"{value:.4g}") for name, value in asdict(spread).items()})


def _grown(growth: Growth) -> Grown:
    return Grown(**asdict(growth), worse_than_linear=growth.worse_than_linear)


def _machine(commit: str) -> Machine:
    cpus = Path("/proc/cpuinfo").read_text().splitlines()
    return Machine(
        cpu=next((line.split(": ")[1] for line in cpus if line.startswith("model name")), ""),
        cores=os.cpu_count(),
        kernel=platform.release(),
        python=platform.python_version(),
        grpcio=version("grpcio"),
        commit=commit,
        load_at_end=os.getloadavg()[0],
    )
