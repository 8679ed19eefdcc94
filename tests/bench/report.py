"""What was found: a table for people, and bench-results.json for programs."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.bench.findings import BASELINE, OURS, Finding, Growth, Spread, growths

_WIDTH = 170


def show(findings: Sequence[Finding]) -> None:
    """A table for each scenario."""
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
    held = finding.within_budget
    if held is None:
        return ""
    return f"{finding.budget} " + ("[green]held[/]" if held else "[red]MISSED[/]")


def _growth(growth: Growth | None) -> str:
    if growth is None:
        return ""
    text = f"n^{growth.exponent:.2f}"
    if not growth.worse_than_linear:
        return text
    return f"[yellow]{text}, last step n^{growth.last_step:.2f}[/]"


def write(findings: Sequence[Finding], path: Path) -> None:
    """Everything, with the machine it was measured on."""
    told = {
        "machine": _machine(),
        "findings": [_record(finding) for finding in findings],
        "growth": [
            {**asdict(growth), "worse_than_linear": growth.worse_than_linear}
            for growth in growths(findings)
        ],
    }
    path.write_text(json.dumps(told, indent=2, ensure_ascii=False) + "\n")


def _record(finding: Finding) -> dict[str, Any]:
    return {
        "scenario": finding.scenario,
        "measure": finding.measure,
        "size": finding.size,
        "servers": {
            server: {
                "values": [float(f"{value:.6g}") for value in values],
                "spread": _asdict(finding.spread(server)),
                "ratio_to_baseline": _asdict(finding.ratio(server)),
            }
            for server, values in finding.values.items()
        },
        "budget": None if finding.budget is None else str(finding.budget),
        "within_budget": finding.within_budget,
    }


def _asdict(spread: Spread | None) -> dict[str, float] | None:
    if spread is None:
        return None
    return {name: float(f"{value:.4g}") for name, value in asdict(spread).items()}


def _machine() -> dict[str, object]:
    cpus = Path("/proc/cpuinfo").read_text().splitlines()
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    return {
        "cpu": next((line.split(": ")[1] for line in cpus if line.startswith("model name")), ""),
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "grpcio": version("grpcio"),
        "commit": commit.stdout.strip(),
        "load_at_end": os.getloadavg()[0],
    }


def missed(findings: Iterable[Finding]) -> list[Finding]:
    """Those over their budget."""
    return [finding for finding in findings if finding.within_budget is False]
