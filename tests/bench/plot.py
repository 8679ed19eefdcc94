"""`make bench-plot`: plot bench-results.json to bench-results.svg.

For each kind of call and for the storm: CPU time and latencies of each server over the sizes, with
the range of the rounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from tests.bench import calls, storm
from tests.bench.findings import BASELINE, GATE_ALONE, OURS, RefusedError
from tests.bench.report import RESULTS, Record, Results, read
from tests.bench.servers import OTHER

FORMATS = (".svg", ".png", ".pdf")
_CALLS = (calls.CPU, calls.P50, calls.P99)
DRAWN = {
    **{kind.name: _CALLS for kind in calls.KINDS},
    storm.SCENARIO: (storm.CPU, storm.P50, storm.LAST),
}
"""The measures of a scenario's panels, from left to right."""
_INCHES = (5.0, 2.6)
_COLORS = {OURS: "C0", BASELINE: "C1", GATE_ALONE: "C2", OTHER: "C3"}


@dataclass(frozen=True, slots=True)
class Panel:
    """A panel of the plot: one measure of one scenario, by size."""

    scenario: str
    measure: str
    findings: Sequence[Record]

    def lines(self) -> dict[str, list[tuple[int, float, float, float]]]:
        """Return by server: (size, median, least, most)."""
        lines: dict[str, list[tuple[int, float, float, float]]] = {}
        for finding in sorted(self.findings, key=lambda each: each.size):
            for name, measured in finding.servers.items():
                if (spread := measured.spread) is not None:
                    point = (finding.size, spread.median, spread.least, spread.most)
                    lines.setdefault(name, []).append(point)
        return lines


@click.command()
@click.argument("results", type=click.Path(path_type=Path), default=RESULTS)
@click.argument("picture", type=click.Path(path_type=Path), default=RESULTS.with_suffix(".svg"))
def main(results: Path, picture: Path) -> None:
    """Plot RESULTS to PICTURE; the suffix chooses .svg, .png or .pdf."""
    if picture.suffix not in FORMATS:
        raise RefusedError(f"{picture} must end in {', '.join(FORMATS)}")
    if not picture.parent.is_dir():
        raise RefusedError(f"there is no folder {picture.parent} for {picture.name}")
    content = read(results)
    rows = panels(content)
    if not rows:
        raise RefusedError(f"{results} has no calls and no storm: run `make bench` first")
    _save(rows, _title(content), picture)


def panels(results: Results) -> list[list[Panel]]:
    """Return the panels of each measured scenario."""
    measured = {finding.scenario for finding in results.findings}
    return [
        [
            Panel(
                scenario, measure, [f for f in results.findings if f.key[:2] == (scenario, measure)]
            )
            for measure in measures
        ]
        for scenario, measures in DRAWN.items()
        if scenario in measured
    ]


def _title(results: Results) -> str:
    machine = results.machine
    commits = {each.commit for each in results.findings if each.scenario in DRAWN}
    measured = ", ".join(sorted(commits - {""}) or [machine.commit])
    return f"{machine.cpu}, {machine.cores} cores; vouchd {measured}"


def _save(rows: Sequence[Sequence[Panel]], title: str, picture: Path) -> None:
    from matplotlib.figure import Figure  # noqa: PLC0415 - only `make bench-plot` installs it

    across, down = len(rows[0]), len(rows)
    width, height = _INCHES
    figure = Figure(figsize=(width * across, height * down), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False)
    for row, across_axes in zip(rows, axes, strict=True):
        for panel, axis in zip(row, across_axes, strict=True):
            _draw(axis, panel)
    figure.suptitle(title)
    try:
        figure.savefig(picture)
    except OSError as error:
        raise RefusedError(f"cannot write {picture}: {error.strerror}") from None


def _draw(axis: Any, panel: Panel) -> None:
    """Draw a line of medians over the sizes and the range of the rounds, for each server."""
    for server, points in panel.lines().items():
        sizes, medians, least, most = zip(*points, strict=True)
        axis.plot(sizes, medians, marker="o", label=server, color=_COLORS.get(server))
        axis.fill_between(sizes, least, most, alpha=0.2, color=_COLORS.get(server))
    axis.set_title(f"{panel.scenario}\n{panel.measure}", fontsize="medium")
    axis.set_xlabel("processes" if panel.scenario == storm.SCENARIO else "at once")
    axis.set_xscale("log")
    if panel.measure in {calls.CPU, storm.CPU}:
        axis.set_ylim(bottom=0)
    else:
        axis.set_yscale("log")
    if panel.findings:
        axis.legend()


if __name__ == "__main__":
    main()
